"""The table of a benchmark's cases as text, at several widths."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from gpualloc.cli.measurements_text import print_measurements
from gpualloc.records import Measurement
from tests.store.sample_measurements import CPU_ENVIRONMENT, cpu_run, gpu_run, image_case, measured


def render(measurements: list[Measurement], width: int = 120, **options: object) -> str:
    text = io.StringIO()
    print_measurements(measurements, Console(file=text, width=width), **options)  # type: ignore[arg-type]
    return text.getvalue()


def rows_of(text: str, name: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_all_columns_at_120() -> None:
    text = render(gpu_run())
    header = "ranks step ms spread compute ms exposed ms samples/s speed-up peak GiB wire MB loss"
    assert " ".join(text.splitlines()[1].split()) == header
    assert rows_of(text, "single")[0] == ["single", "1", "22.44", "2.0%", "22.44", "-", "2,852", "1.00x", "6.81", "0.00", "2.303->1.871"]
    assert rows_of(text, "ddp/torch_fp16")[0][1:8] == ["2", "23.91", "2.0%", "22.59", "1.32", "5,353", "1.88x"]


@pytest.mark.parametrize(
    ("width", "gone"),
    [(60, ["loss", "wire", "compute", "peak", "exposed", "spread"]), (80, ["loss", "wire", "compute", "peak"]), (120, [])],
)
def test_narrow_terminals_lose_columns_and_no_figure_is_cut(width: int, gone: list[str]) -> None:
    text = render(gpu_run() + cpu_run(), width)
    assert max(map(len, text.splitlines())) <= width
    header = text.splitlines()[1]
    assert [name for name in ("loss", "wire", "compute", "peak", "exposed", "spread") if name not in header] == gone
    for figure in ("22.44", "2,852", "1.92x", "10,419", "~23.42", "44,738"):
        assert figure in text


def test_no_line_is_wider_than_the_console() -> None:
    for width in range(50, 130):  # a title is 46 wide
        lines = render(gpu_run() + cpu_run(), width).splitlines()
        assert max(map(len, lines)) <= width


def test_even_a_very_narrow_terminal_shows_names_and_ranks() -> None:
    assert rows_of(render(cpu_run(), 25), "ddp/none") == [["ddp/none", "2"]]


def test_each_block_begins_with_the_single_process_and_goes_on_by_ranks() -> None:
    one_rank = measured(image_case(world_size=1), 0.0225)
    text = render([one_rank, *reversed(gpu_run())])
    image_block, llm_block = text.split("\n\n")[:2]
    assert image_block.splitlines()[0] == "mobilenet_v2, 200 px, fp16, 64 per rank, cuda"
    assert llm_block.splitlines()[0] == "gpt_small, 1024 tokens, fp16, 8 per rank, cuda"
    for block, ranks in ((image_block, "1 1 2 2 2 4 4 4"), (llm_block, "1 2 4 8")):
        rows = [line.split() for line in block.splitlines()[2:] if line.startswith(("single ", "ddp/"))]
        assert rows[0][0] == "single"
        assert " ".join(row[1] for row in rows) == ranks


def test_language_models_show_tokens_per_second() -> None:
    block = render(gpu_run()).split("gpt_small")[1]
    assert "tokens/s" in block
    assert "samples/s" not in block
    assert rows_of(block, "ddp/none")[0][-1] == "10.971->nan"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_status_and_whole_reason_replace_the_figures(width: int) -> None:
    text = " ".join(render(gpu_run(), width).split())
    for row in gpu_run():
        if row.status != "ok":
            assert f"{row.case.world_size} {row.status}: {row.reason}" in text


def test_without_a_baseline_speedup_refers_to_the_first_measured_row() -> None:
    failed = Measurement(case=image_case(strategy="single", world_size=1), status="oom", reason="too big")
    text = render([failed, measured(image_case(), 0.02), measured(image_case(world_size=4), 0.02)])
    assert [row[7] for row in rows_of(text, "ddp/none")] == ["1.00x", "2.00x"]
    assert "over that of the block's first measured row" in text


def test_nothing_measured_promises_no_speedup() -> None:
    assert "speed-up is" not in render([Measurement(case=image_case(), status="failed", reason=None)])
    assert render([]) == "no cases recorded\n"


def test_a_selection_keeps_the_runs_baseline() -> None:
    selected = [row for row in gpu_run() if row.case.hook == "gpualloc_fp16"]
    text = render(selected, whole_run=gpu_run())
    assert [row[7] for row in rows_of(text, "ddp/gpualloc_fp16")] == ["1.92x", "3.65x"]
    assert "over that of a single process" in text


def test_noisy_rows_are_marked_and_explained() -> None:
    assert "~23.42" in render(gpu_run())
    assert "more than 5%: not certain" in render(gpu_run())
    assert "~" not in render([row for row in gpu_run() if (row.spread or 0) < 0.05])


def test_inf_and_nan_are_marked_and_explained_whether_the_loss_is_shown_or_not() -> None:
    assert "!201.24" in render(gpu_run(), 60)
    assert "! inf or NaN in an averaged gradient" in render(gpu_run(), 60)
    assert "!~100.00" in render([measured(image_case(), 0.1, spread=0.1, nonfinite_steps=3)])
    assert "!" not in render([measured(image_case(), 0.1)])


def test_caption_names_backend_and_device() -> None:
    assert render(gpu_run()).count("nccl on NVIDIA H200") == 1
    assert "gloo on AMD EPYC 7763 64-Core Processor: CPU, not comparable with a GPU" in render(cpu_run())
    both = render(gpu_run() + cpu_run())
    assert both.count("nccl on NVIDIA H200") == 2  # under each block, as they differ
    assert both.count("CPU, not comparable with a GPU") == 1
    assert "nccl on NVIDIA H200: 4 ranks share a GPU" in render([measured(image_case(ranks_per_gpu=4), 0.1)])


def test_gpu_and_cpu_are_never_in_one_block() -> None:
    on_cpu = measured(image_case(device="cpu"), 0.5, environment=CPU_ENVIRONMENT)
    assert render([measured(image_case(), 0.1), on_cpu]).count(" per rank, ") == 2


def test_hostile_names_print_as_text() -> None:
    case = image_case(model="[bold]\x1b[31m<b>\n\udcff", hook="[/red]\x07", data="/data/=1")
    text = render([measured(case, 0.1), Measurement(case=replace(case, seed=1), status="failed", reason="\x1b]0;title\x07 [red] a\nb")])
    assert "[bold]\\x1b[31m<b> \\udcff, 200 px of /data/=1" in text
    assert "ddp/[/red]\\x07" in text
    assert "failed: \\x1b]0;title\\x07 [red] a b" in text
    assert "\x1b" not in text


def test_ten_thousand_rows_print() -> None:
    rows = [measured(image_case(seed=seed), 0.1) for seed in range(10_000)]
    assert len(rows_of(render(rows), "ddp/none")) == 10_000
