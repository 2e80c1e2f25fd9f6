"""Single values: what is refused, and in which words."""

from __future__ import annotations

import os
from typing import Any

import pytest

from gpualloc.bench.options import BenchOptions
from gpualloc.errors import UsageError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precisions": ("fp99",)}, "--precision 'fp99' is unknown; choose one of fp64, fp32, tf32, fp16, bf16"),
        ({"device": "tpu"}, "--device 'tpu' is unknown; choose one of cuda, cpu"),
        ({"workloads": ("audio",)}, "--workload 'audio' is unknown; choose one of image, llm"),
        ({"models": ("resnet",)}, "--model 'resnet' is unknown; choose one of mobilenet_v2"),
        ({"strategies": ("zero",)}, "--strategy 'zero' is unknown; choose one of single, data_parallel, ddp"),
        ({"hooks": ("powersgd",)}, "--hook 'powersgd' is unknown; choose one of none, torch_fp16"),
        ({"per_device_batch_sizes": (8, 0)}, "--batch-size 0 is out of range; choose 1 to"),
        ({"per_device_batch_sizes": (10**9,)}, "--batch-size 1000000000 is out of range"),
        ({"ranks_per_gpu": 0}, "--ranks-per-gpu 0 is out of range; choose 1 to 16"),
        ({"num_steps": 0}, "--steps 0 is out of range; choose 1 to"),
        ({"num_repeats": 0}, "--repeats 0 is out of range; choose 1 to"),
        ({"num_warmup_steps": -1}, "--warmup-steps -1 is out of range; choose 0 to"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"models": ()}, "models is empty"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match="^" + message.replace("(", r"\(")):
        BenchOptions(**{"device": "cpu", **changes})


def test_duplicates_go_and_the_order_stays() -> None:
    options = BenchOptions(device="cpu", precisions=("fp16", "fp32", "fp16"), image_sizes_px=(200, 100, 200))
    assert options.precisions == ("fp16", "fp32")
    assert options.image_sizes_px == (200, 100)


def test_a_path_becomes_absolute() -> None:
    assert BenchOptions(device="cpu", data="photos").data == os.path.abspath("photos")


@pytest.mark.parametrize(
    ("changes", "models"),
    [
        ({}, ["mobilenet_v2", "gpt_small"]),
        ({"workloads": ("llm",)}, ["gpt_small"]),
        ({"models": ("gpt2",)}, ["gpt2"]),
        ({"models": ("gpt2", "mobilenet_v2"), "workloads": ("image", "llm")}, ["mobilenet_v2", "gpt2"]),
        ({"data": "digits"}, ["mobilenet_v2"]),
        ({"data": "/"}, ["mobilenet_v2"]),
        ({"data": __file__}, ["gpt_small"]),
        ({"data": "/", "workloads": ("llm",)}, ["gpt_small"]),
    ],
)
def test_model_and_data_imply_the_workload(changes: dict[str, Any], models: list[str]) -> None:
    assert BenchOptions(device="cpu", **changes).chosen_models() == models


def test_a_model_of_another_workload_is_refused() -> None:
    with pytest.raises(UsageError, match="--model gpt2 is of workload llm and the workload is image; choose one of mobilenet_v2"):
        BenchOptions(device="cpu", workloads=("image",), models=("gpt2",)).chosen_models()
