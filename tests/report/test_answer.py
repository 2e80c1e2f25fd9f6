"""What the manager is told follows from the figures."""

from dataclasses import replace
from typing import Any

import pytest

from gpualloc.records import Measurement
from gpualloc.report.answer import find_answer
from gpualloc.report.manager import manager_part
from gpualloc.report.words import Words
from tests.findings.studied_runs import batches_run, details_run, single, study_run
from tests.report.inputs import inputs_of, study_inputs
from tests.store.sample_measurements import cpu_run, image_case, measured


def scaled(efficiency: float, *, world_size: int = 2, spread: float = 0.01, **changes: Any) -> list[Measurement]:
    return [
        measured(single(**changes), 0.02, spread=spread),
        measured(image_case(world_size=world_size, **changes), 0.02 / efficiency, spread=spread),
    ]


def answer_of(rows: list[Measurement]) -> Any:
    return find_answer(inputs_of(rows).studies[0])


@pytest.mark.parametrize(
    ("rows", "verdict", "sureness"),
    [
        (scaled(0.95), "yes", "certain"),
        (scaled(0.95, spread=0.08), "yes", "noisy"),
        (scaled(0.5), "no", "certain"),
        (scaled(0.8, spread=0.2), "unsure", "open"),
        ([*scaled(0.95, image_size_px=300), *scaled(0.5, image_size_px=100)], "depends", "certain"),
        (scaled(0.95, ranks_per_gpu=2), "yes", "slices"),
        (scaled(0.95, gpus_per_node=8, link="nvlink4"), "yes", "modelled"),
        ([measured(single(), 0.02)], "unknown", "open"),
        (cpu_run(), "no", "cpu"),
        ([], "unknown", "open"),
        ([Measurement(case=image_case(), status="failed", reason="x")], "unknown", "open"),
    ],
)
def test_verdict_and_how_sure(rows: list[Measurement], verdict: str, sureness: str) -> None:
    found = answer_of(rows)
    assert (found.verdict, found.sureness) == (verdict, sureness)
    for language in ("en", "ja"):
        part = manager_part(inputs_of(rows), Words(language))
        assert part.sentences
        assert len(part.sentences) <= 3
    if sureness in ("slices", "cpu"):
        assert "were not measured" in manager_part(inputs_of(rows), Words("en")).headline


def test_the_studys_answer_in_three_sentences() -> None:
    part = manager_part(inputs_of(study_run()), Words("en"))
    assert part.headline == "It depends: more GPUs pay for part of the work."
    assert "mobilenet_v2: 4 GPUs pay from about 300 px on" in part.sentences[0]
    assert part.sentences[1].startswith(
        "First step: precision fp16 instead of fp32, 36–50% faster on the same hardware (in all 5 comparisons)."
    )
    # 500 px: 64 samples in 0.5 s / 1.68 on one GPU, on four at 90 %: 4 x 0.9 times as fast and 1 / 0.9 times the cost.
    one_gpu_s = 1e6 / (64 / (0.5 / 1.68))
    assert f"costs {one_gpu_s / 3600 * 2.5 / 0.9:.2f} EUR instead of {one_gpu_s / 3600 * 2.5:.2f} EUR (11% dearer)" in part.sentences[2]
    assert "4 GPUs, fp32, ddp/none instead of 1 GPU, fp32" in part.sentences[2]


def test_the_threshold_is_drawn_where_the_line_crosses_the_bar() -> None:
    figures = manager_part(study_inputs(), Words("en")).figures
    assert [each.title for each in figures] == ["Speed-up against ideal", "From which size more GPUs pay", "Cost per result"]
    assert "4 GPUs: from 300 px" in figures[1].wide
    cells = [cell.text for row in figures[1].table.rows for cell in row]
    assert "80.6% [" in " ".join(cells)


def test_the_first_step_is_what_gains_most_for_certain() -> None:
    step = answer_of(details_run()).first_step
    assert (step.question, step.changed) == ("channels_last", "on")  # pinned memory is on by default, so turning it off loses
    assert answer_of([measured(single(), 0.02), measured(single(precision="bf16"), 0.0199)]).first_step is None
    hooked = [*scaled(0.7), measured(image_case(hook="gpualloc_auto"), 0.02 / 0.9)]
    assert answer_of(hooked).first_step.question == "hook"


def test_cost_of_a_slice_is_its_share_of_a_gpu_and_tokens_are_counted_for_language() -> None:
    slices = answer_of(scaled(0.9, ranks_per_gpu=2))
    assert slices.start.result_gpu_hours == pytest.approx(1e6 / (64 / 0.02) / 3600 / 2)
    assert slices.goal.result_gpu_hours == pytest.approx(slices.start.result_gpu_hours / 0.9)
    text = " ".join(manager_part(inputs_of(batches_run()), Words("en")).sentences)
    assert "a million tokens" in text


def test_without_a_price_gpu_hours_are_told_and_no_money() -> None:
    text = " ".join(manager_part(study_inputs(price=None), Words("en")).sentences)
    assert "GPU-h" in text
    assert "EUR" not in text


def test_rows_that_were_disturbed_are_said_to_be_missing() -> None:
    rows = [replace(row, disturbances=("another process",)) for row in scaled(0.9)]
    text = manager_part(inputs_of(rows), Words("en")).sentences[0]
    assert text.startswith("2 of 2 measurements do not count")
