"""Which trainings an experiment has, and what is refused before any of them starts."""

from typing import Any

import pytest

from gpualloc.errors import UsageError
from gpualloc.quality.options import QualityOptions, plan_runs


def names(**changes: Any) -> list[tuple[str, str, str, int]]:
    planned = plan_runs(QualityOptions(**{"device": "cpu", **changes}), num_gpus=0 if changes.get("device") != "cuda" else 1)
    cases = [plan.cell.case for plan in planned]
    return [(case.model, case.precision, case.hook, case.seed) for case in cases]


def test_the_reference_comes_first_and_every_seed() -> None:
    found = names(workloads=("image",), precisions=("fp16",), hooks=("gpualloc_fp16",), num_seeds=2, first_seed=5)
    assert found == [
        ("mobilenet_v2", precision, hook, seed) for precision, hook in (("fp32", "none"), ("fp16", "gpualloc_fp16")) for seed in (5, 6)
    ]


def test_the_defaults_cover_precisions_and_hooks() -> None:
    found = names(device="cuda", num_seeds=2)
    groups = list(dict.fromkeys((model, precision, hook) for model, precision, hook, _ in found))
    hooks = ("none", "gpualloc_fp32", "gpualloc_fp16", "gpualloc_bf16", "gpualloc_int8", "gpualloc_auto")
    for model in ("mobilenet_v2", "gpt_small"):
        assert [(precision, hook) for name, precision, hook in groups if name == model] == [
            *(("fp32", hook) for hook in hooks),
            ("fp16", "none"),
            ("bf16", "none"),
        ]
    assert {model for model, _, _, _ in names()} == {"mobilenet_v2", "gpt_tiny"}


def test_several_models() -> None:
    assert list(dict.fromkeys(model for model, *_ in names(models=("gpt_tiny", "mobilenet_v2")))) == ["gpt_tiny", "mobilenet_v2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 1}, "choose 2 to 100: a verdict needs their spread"),
        ({"learning_rate": 0.0}, "--learning-rate 0 is out of range"),
        ({"learning_rate": float("nan")}, "--learning-rate nan is out of range"),
        ({"precisions": ("fp12",)}, "--precision 'fp12' is unknown"),
        ({"hooks": ("fast",)}, "--hook 'fast' is unknown"),
        ({"models": ("vgg",)}, "--model 'vgg' is unknown"),
        ({"workloads": ("image",), "models": ("gpt_tiny",)}, "--model gpt_tiny is of workload llm"),
        ({"image_size_px": 8}, "image_size_px is 8"),
        ({"num_gpus": 2}, "need a GPU"),
        ({"num_steps": 0}, "--steps 0 is out of range"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        names(**changes)
