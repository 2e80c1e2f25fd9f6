"""Models of the user's own: the example trains, and each way to get the factory wrong is named."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpualloc.bench.measure import Trainer
from gpualloc.errors import UsageError
from gpualloc.workloads import build_model, describe_data, find_model, open_batches, unsupported_reason
from gpualloc.workloads.libraries import build_library_model
from tests.ranks import run_ranks
from tests.workloads.cases import image_case, llm_case

EXAMPLE = "examples.user_model:make_regression"
CPU = torch.device("cpu")


def train_example(rank: int, world_size: int) -> tuple[list[float], list[list[float]]]:
    """Losses of ten steps of the example, and each parameter's sum."""
    strategy = "ddp" if world_size > 1 else "single"
    case = image_case(model=EXAMPLE, per_device_batch_size=16, world_size=world_size, strategy=strategy)
    trainer, batches = Trainer(case, rank=rank, device=CPU), open_batches(case, rank=rank, pin_memory=False)
    losses = [trainer.step(batches).item() for _ in range(10)]
    return losses, [parameter.sum().item() for parameter in trainer.wrapped.model.parameters()]


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_example_learns_with_its_own_loss(world_size: int) -> None:
    results = run_ranks(train_example, world_size)
    for losses, sums in results:
        assert losses[-1] < 0.5 * losses[0] < 0.5  # of squares, not a cross-entropy
        assert sums == results[0][1]
    assert len({losses[0] for losses, _ in results}) == world_size, "each rank has batches of its own"


def test_the_example_has_the_same_weights_for_the_same_seed() -> None:
    first, second = (build_model(image_case(model=EXAMPLE), dtype=torch.float64) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float64}


def test_its_batches_are_cycled_and_described() -> None:
    case = image_case(model=EXAMPLE)
    batches = open_batches(case, rank=0, pin_memory=False)
    drawn = [next(batches) for _ in range(9)]
    assert drawn[0][0].shape == (4, 32, 32)
    assert torch.equal(drawn[0][0], drawn[8][0])
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert describe_data(case).description == f"made by {EXAMPLE}"
    with pytest.raises(UsageError, match="makes its own batches and the data is 'digits'; leave the data out"):
        describe_data(image_case(model=EXAMPLE, data="digits"))
    assert "leave the number of workers out" in str(unsupported_reason(image_case(model=EXAMPLE, num_workers=2)))


def test_a_user_model_is_of_any_workload() -> None:
    assert find_model(EXAMPLE).workload == "image"
    assert find_model(EXAMPLE, workload="llm").workload == "llm"


def test_a_factory_in_the_working_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text("def make(case): ...\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('a module of the working directory took the place of another')\n")
    program = (
        f"import sys; sys.path = [p for p in {sys.path!r} if p]\n"
        "from gpualloc.workloads import find_model; print(find_model('my_models:make').name)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("my_models:make\n", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "module no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'; run"),
        ("examples.user_model:make_nothing", "module examples.user_model has no make_nothing; a factory takes the case"),
        ("examples.user_model:__doc__", "__doc__ is a str, not a function; a factory takes the case"),
        ("os:getcwd", "getcwd cannot be called with one argument: too many positional arguments; a factory takes the case"),
        ("examples/user_model.py:make", "is not of the form package.module:factory"),
        (":make", "is not of the form package.module:factory"),
        ("timm:", "names no model of timm; write for example timm:resnet18"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_before_anything_starts(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as caught:
        find_model(name, workload="image")
    assert str(caught.value).startswith(f"model {name!r}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("import absent_library", "No module named 'absent_library'; install the package that has absent_library beside gpualloc, and"),
        ("int('x')", r"ValueError: .*; where in it, shows python -c 'import failing_models'"),
    ],
)
def test_a_module_that_fails_when_imported_says_what_it_lacks(
    lines: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_models.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=message):
        find_model("failing_models:make", workload="image")


def returns_nothing(case: object) -> None:
    return None


def returns_a_pair(case: object) -> Any:
    return nn.Linear(1, 1), nn.MSELoss()


def returns_a_function_for_a_model(case: object) -> Any:
    return (lambda x: x), (lambda generator: None), nn.MSELoss()


def returns_a_string_for_a_loss(case: object) -> Any:
    return nn.Linear(1, 1), (lambda generator: None), "mse"


def returns_another_batch_size(case: object) -> Any:
    return nn.Linear(1, 1), (lambda generator: (torch.zeros(3, 1), torch.zeros(3, 1))), nn.MSELoss()


def returns_one_tensor_for_a_batch(case: object) -> Any:
    return nn.Linear(1, 1), (lambda generator: torch.zeros(4, 1)), nn.MSELoss()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (returns_nothing, "the factory returned a NoneType; a factory takes the case and returns (model, make_batch, loss)"),
        (returns_a_pair, "the factory returned a tuple of 2; a factory"),
        (returns_a_function_for_a_model, "the factory's model is a function, not an nn.Module"),
        (returns_a_string_for_a_loss, "the factory's loss is a str, no function"),
        (
            returns_another_batch_size,
            "inputs of make_batch have shape [3, 1]; their first dimension must be case.per_device_batch_size",
        ),
        (returns_one_tensor_for_a_batch, "make_batch returned a Tensor, not (inputs, targets)"),
    ],
)
def test_a_factory_that_returns_something_else_is_refused(factory: Any, message: str) -> None:
    case = image_case(model=f"{__name__}:{factory.__name__}")
    with pytest.raises(UsageError) as caught:
        open_batches(case, rank=0, pin_memory=False)
    assert message in str(caught.value)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_missing_or_broken_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = image_case(model=f"{library}:resnet18")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"model '{library}:resnet18' needs {library}, .* run: pip install {library}$"):
        find_model(case.model, workload="image")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

    def fail(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")  # what a torchvision built for another torch says

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(UsageError, match=f"{library} cannot be imported: RuntimeError: operator .*; install the {library} built for this"):
        build_library_model(case.model, image_size_px=64, num_classes=10)


@pytest.mark.parametrize(("library", "vit"), [("torchvision", "vit_b_16"), ("timm", "vit_tiny_patch16_224")])
def test_models_of_libraries(library: str, vit: str) -> None:
    try:
        importlib.import_module("torchvision.models")  # timm needs it, too
        importlib.import_module(library)
    except Exception as error:
        pytest.skip(f"{library} cannot be imported: {error}")
    for name in ("resnet18", vit):
        model = build_model(image_case(model=f"{library}:{name}", image_size_px=64))
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    with pytest.raises(UsageError, match=f"model '{library}:no_such': {library} does not make it"):
        build_model(image_case(model=f"{library}:no_such"))


def test_libraries_have_no_language_models() -> None:
    with pytest.raises(UsageError, match="model 'timm:resnet18' is an image model and the workload is 'llm'"):
        build_model(llm_case(model="timm:resnet18"))
