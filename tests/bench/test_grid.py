"""From options to cases, on machines with and without GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpualloc.bench import precision
from gpualloc.bench.grid import GridCell, expand_grid, expand_grids
from gpualloc.bench.options import BenchOptions
from gpualloc.errors import UsageError


def grid(num_present: int = 0, /, **changes: Any) -> list[GridCell]:
    return expand_grid(BenchOptions(**{"device": "cuda" if num_present else "cpu", **changes}), num_gpus=num_present)


def labels(cells: list[GridCell]) -> list[str]:
    return [cell.case.label() for cell in cells]


@pytest.fixture(autouse=True)
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_capability", lambda: (8, 0))


def test_the_default_grid_of_a_cpu_machine() -> None:
    cells = grid(precisions=("fp16",))
    assert labels(cells) == [
        f"{what} fp16 {how}"
        for what in ("mobilenet_v2 64px", "mobilenet_v2 128px", "gpt_small 64tok")
        for how in ("single x1", "ddp/none x2", "ddp/torch_fp16 x2", "ddp/gpualloc_fp16 x2")
    ]
    assert {cell.skip_reason for cell in cells} == {None}


def test_the_default_grid_of_four_gpus() -> None:
    cells = grid(4)
    assert {cell.case.image_size_px for cell in cells} == {100, 300, None}
    assert {cell.case.sequence_length for cell in cells} == {256, None}
    assert {cell.case.world_size for cell in cells if cell.case.strategy == "ddp"} == {4}
    assert {cell.case.per_device_batch_size for cell in cells if cell.case.workload == "image"} == {64}
    assert len(cells) == 12


def test_one_gpu_runs_ddp_with_one_rank() -> None:
    assert labels(grid(1, workloads=("llm",)))[1] == "gpt_small 256tok fp32 ddp/none x1"


def test_several_numbers_of_gpus_and_ranks_per_gpu() -> None:
    cells = grid(4, workloads=("llm",), hooks=("none",), num_gpus=(1, 2), ranks_per_gpu=2)
    assert [cell.case.world_size for cell in cells] == [1, 2, 4]
    assert {cell.case.ranks_per_gpu for cell in cells} == {2}


def test_bf16_gets_bf16_hooks() -> None:
    cells = grid(2, workloads=("llm",), precisions=("bf16",))
    assert [cell.case.hook for cell in cells] == ["none", "none", "torch_bf16", "gpualloc_bf16"]


def test_all_cases_of_a_cpu_grid_with_fp16_are_equally_small() -> None:
    assert (
        len({(cell.case.per_device_batch_size, cell.case.num_steps) for cell in grid(precisions=("fp32", "fp16"), workloads=("image",))})
        == 1
    )


def test_each_combination_of_details_is_a_case_and_the_label_names_it() -> None:
    cells = grid(
        1, models=("mobilenet_v2",), image_sizes_px=(64,), strategies=("single",), channels_last=(False, True), grad_accum_steps=(1, 4)
    )
    assert [label.removeprefix("mobilenet_v2 64px fp32 single x1") for label in labels(cells)] == [
        "",
        " grad_accum_steps=4",
        " channels_last",
        " channels_last grad_accum_steps=4",
    ]


def test_every_detail_reaches_the_case() -> None:
    asked: dict[str, Any] = {
        "tuning": "lora",
        "optimizer": "adamw",
        "pin_memory": False,
        "non_blocking": False,
        "num_workers": 3,
        "channels_last": True,
        "compile": True,
        "grad_accum_steps": 2,
        "activation_checkpointing": True,
    }
    plural = {"tuning": "tunings", "optimizer": "optimizers"}
    [cell] = grid(
        1,
        models=("mobilenet_v2",),
        image_sizes_px=(64,),
        strategies=("single",),
        **{plural.get(name, name): (value,) for name, value in asked.items()},
    )
    assert cell.case.details() == asked


def test_a_language_model_has_no_memory_format() -> None:
    cells = grid(1, channels_last=(False, True), strategies=("single",))
    assert {cell.case.channels_last for cell in cells if cell.case.workload == "llm"} == {False}
    assert {cell.case.channels_last for cell in cells if cell.case.workload == "image"} == {False, True}


def test_pinned_memory_is_skipped_on_a_cpu() -> None:
    cells = grid(workloads=("llm",), strategies=("single",), pin_memory=(False, True))
    assert [cell.skip_reason is None for cell in cells] == [True, False]


@pytest.mark.parametrize(("num_present", "counts"), [(4, [1, 2, 3, 4]), (0, [1, 2])])
def test_one_to_all_gpus_are_the_ranks_of_a_cpu(num_present: int, counts: list[int]) -> None:
    cells = grid(num_present, workloads=("llm",), strategies=("ddp",), hooks=("none",), num_gpus=("1..all",))
    assert [cell.case.world_size for cell in cells] == counts


def test_a_case_of_two_grids_runs_once_where_it_first_stands() -> None:
    grids = [
        BenchOptions(device="cpu", models=("gpt_small",), strategies=("single",), sequence_lengths=lengths, hooks=None)
        for lengths in ((64, 128), (32, 64))
    ]
    assert [cell.case.sequence_length for cell in expand_grids(grids, num_gpus=0)] == [64, 128, 32]


def test_given_numbers_win_over_defaults() -> None:
    case = grid(num_steps=7, num_repeats=2, num_warmup_steps=0, per_device_batch_sizes=(3,), image_sizes_px=(64,), workloads=("image",))[
        0
    ].case
    assert (case.num_steps, case.num_repeats, case.num_warmup_steps, case.per_device_batch_size, case.image_size_px) == (7, 2, 0, 3, 64)


def test_what_the_device_lacks_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_capability", lambda: (7, 5))
    cells = grid(1, workloads=("llm",), precisions=("bf16", "fp32"), strategies=("single",))
    assert [cell.skip_reason for cell in cells] == ["bf16 needs compute capability 8.0, this GPU has 7.5", None]


def test_hooks_that_make_no_sense_are_skipped_with_the_reason() -> None:
    on_cpu = grid(workloads=("llm",), strategies=("ddp",), hooks=("torch_bf16",))
    assert "without NCCL" in str(on_cpu[0].skip_reason)
    in_fp64 = grid(workloads=("llm",), strategies=("ddp",), precisions=("fp64",), hooks=("gpualloc_fp16",))
    assert "unchanged" in str(in_fp64[0].skip_reason)


@pytest.mark.parametrize(
    ("num_present", "changes", "message"),
    [
        (2, {"num_gpus": (0,)}, "--gpus 0 is not possible, this machine has 2 visible; choose 1 to 2"),
        (2, {"num_gpus": (1, 4)}, "--gpus 4 is not possible, this machine has 2 visible"),
        (0, {"num_gpus": (1,)}, "need a GPU and this benchmark runs on the CPU"),
        (0, {"ranks_per_gpu": 2}, "need a GPU and this benchmark runs on the CPU"),
        (2, {"num_gpus": (2,), "strategies": ("single",)}, "--gpus is for several ranks and --strategy is single"),
        (0, {"hooks": ("none",), "strategies": ("single",)}, "--hook is for ddp and --strategy is single"),
        (0, {"image_sizes_px": (64,), "workloads": ("llm",)}, "--image-size is for workload image and only llm is run"),
        (0, {"sequence_lengths": (64,), "workloads": ("image",)}, "--sequence-length is for workload llm and only image is run"),
        (0, {"image_sizes_px": (0,)}, "image_size_px is 0; choose 32 or more, up to 4096"),
        (0, {"image_sizes_px": (-5,)}, "image_size_px is -5; choose"),
        (0, {"image_sizes_px": (10**9,)}, "image_size_px is 1000000000; choose"),
        (0, {"sequence_lengths": (0,)}, "sequence_length is 0; choose"),
        (0, {"data": "/no/such/place"}, "does not exist"),
        (0, {"data": "digits", "workloads": ("llm",)}, "data 'digits' is images and the workload is llm"),
    ],
)
def test_contradictions_are_refused(num_present: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        grid(num_present, **changes)
    assert message in str(caught.value)


def test_a_text_file_is_measured_with_a_language_model(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("All happy families are alike. " * 200)
    cells = grid(data=str(text))
    assert {cell.case.model for cell in cells} == {"gpt_small"}
    assert {cell.case.data for cell in cells} == {str(text)}
