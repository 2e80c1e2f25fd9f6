"""Which runs a study asks for, on machines whose efficiency at every size is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc.bench.grid import GridCell
from gpualloc.errors import UsageError
from gpualloc.experiment import Done, Question, Step, make_question, next_step
from gpualloc.experiment.plan import MAX_ROUNDS, fastest_precision, most_cases
from gpualloc.records import BenchCase, Measurement
from tests.store.sample_measurements import image_case, measured

SIZES = tuple(range(100, 520, 20))  # 21


def grid(sizes: Sequence[int] = SIZES, precisions: Sequence[str] = ("fp16",)) -> list[GridCell]:
    cases = []
    for size in sizes:
        for precision in precisions:
            cases += [
                image_case(image_size_px=size, precision=precision, strategy="single", world_size=1),
                image_case(image_size_px=size, precision=precision, world_size=4),
            ]
    return [GridCell(case, None) for case in cases]


def play(
    question: Question, efficiency: Callable[[int], float], *, spread: float = 0.002, fails: Sequence[int] = ()
) -> tuple[list[Step], Done, dict[str, Measurement]]:
    """Steps until nothing is left, on a machine with that efficiency; sizes in `fails` run out of memory."""
    measured_rows: dict[str, Measurement] = {}
    steps = []
    while isinstance(step := next_step(question, measured_rows), Step):
        steps.append(step)
        assert len(steps) < 100
        for cell in step.cells:
            measured_rows[cell.case.key()] = _row(cell.case, efficiency, spread, step.rounds, fails)
    return steps, step, measured_rows


def _row(case: BenchCase, efficiency: Callable[[int], float], spread: float, rounds: int, fails: Sequence[int]) -> Measurement:
    size = case.image_size_px or 0
    if size in fails:
        return Measurement(case=case, status="oom", reason="too large")
    alone_s = size**2 * 1e-6 * (2 if case.precision == "fp32" else 1)
    return measured(case, alone_s / (efficiency(size) if case.world_size > 1 else 1), spread=spread, num_rounds=rounds)


def test_a_threshold_among_21_sizes_takes_few_runs() -> None:
    question = make_question(grid(), min_efficiency=0.8)
    steps, done, rows = play(question, lambda size: max(0.1, 1 - 20_000 / size**2))  # crosses 80 % at 316 px
    assert done.is_certain
    assert done.why == "300 fails certainly, 320 pays certainly, and no size asked for is between"
    assert len(rows) <= 12 < most_cases(question) == 16
    assert [step.cells[0].case.image_size_px for step in steps[:2]] == [500, 100]


def test_the_largest_that_fails_and_the_smallest_that_pays_end_it() -> None:
    question = make_question(grid(), min_efficiency=0.8)
    steps, done, rows = play(question, lambda size: 0.5)
    assert (len(steps), len(rows), done.is_certain, done.why) == (1, 2, True, "even the largest size fails certainly")
    steps, done, rows = play(question, lambda size: 0.9)
    assert (len(steps), len(rows), done.is_certain, done.why) == (2, 4, True, "the smallest size pays certainly")


def test_what_is_too_close_gets_more_rounds_and_then_is_said_to_be() -> None:
    question = make_question(grid(sizes=(200,)), min_efficiency=0.8)
    steps, done, _ = play(question, lambda size: 0.8, spread=0.1)
    assert [step.rounds for step in steps] == list(range(1, MAX_ROUNDS + 1))
    assert not done.is_certain
    assert done.why == "4 rounds leave 200 too close to call"


def test_a_size_that_does_not_fit_is_left_out() -> None:
    question = make_question(grid(sizes=(100, 300, 500)), min_efficiency=0.8)
    _, done, rows = play(question, lambda size: 0.9 if size > 200 else 0.5, fails=[500])
    assert done.why == "100 fails certainly, 300 pays certainly, and no size asked for is between"
    assert sum(row.status == "oom" for row in rows.values()) == 2
    _, done, _ = play(question, lambda size: 0.9, fails=[100, 300, 500])
    assert (done.why, done.is_certain) == ("no size could be measured", False)


def test_the_fastest_precision_on_one_goes_on() -> None:
    question = make_question(grid(sizes=(200,), precisions=("fp32", "fp16")), min_efficiency=0.8)
    steps, done, rows = play(question, lambda size: 0.9)
    assert [cell.case.precision for cell in steps[0].cells] == ["fp32", "fp16"]
    assert {cell.case.world_size for cell in steps[0].cells} == {1}
    assert fastest_precision(question, rows) == "fp16"
    assert [cell.case.world_size for cell in steps[1].cells] == [4]  # one GPU in fp16 is measured already
    assert done.is_certain


def test_a_disturbed_case_is_measured_again() -> None:
    question = make_question(grid(sizes=(200,)), min_efficiency=0.8)
    rows = {cell.case.key(): replace(measured(cell.case, 1.0), disturbances=("busy",)) for cell in question.cells}
    step = next_step(question, rows)
    assert isinstance(step, Step)
    assert (step.rounds, step.why) == (2, "200 was disturbed, and is measured again")
    worn = {key: replace(row, num_rounds=MAX_ROUNDS) for key, row in rows.items()}
    assert next_step(question, worn) == Done(why="no size could be measured", is_certain=False)


def test_a_grid_of_several_questions_is_refused() -> None:
    with pytest.raises(UsageError, match="a study is of one model"):
        make_question([*grid(), GridCell(image_case(model="resnet50"), None)], min_efficiency=0.8)
    with pytest.raises(UsageError, match="one way to use several, and here are: ddp/none on 4, ddp/none on 8"):
        make_question([*grid(), GridCell(image_case(world_size=8), None)], min_efficiency=0.8)
    two = [GridCell(replace(cell.case, per_device_batch_size=8), None) for cell in grid()]
    with pytest.raises(UsageError, match="give several values of one"):
        make_question([*grid(), *two], min_efficiency=0.8)
    with pytest.raises(UsageError, match="none of the cases can run here: no such"):
        make_question([GridCell(cell.case, "no such") for cell in grid()], min_efficiency=0.8)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.sets(st.integers(20, 1000), min_size=2, max_size=30).map(lambda values: tuple(sorted(values))),
    crossing=st.integers(10, 1100),
    steepness=st.floats(1.5, 20),
)
def test_any_rising_efficiency_is_bracketed_within_the_plan(sizes: tuple[int, ...], crossing: int, steepness: float) -> None:
    def efficiency(size: int) -> float:
        apart = 0.02 if size >= crossing else -0.02  # so that the verdict is certain
        return min(1.0, max(0.05, 0.8 + apart + 0.01 * steepness * (size - crossing) / 100))

    question = make_question(grid(sizes=sizes), min_efficiency=0.8)
    _, done, rows = play(question, efficiency)
    assert done.is_certain
    seen = sorted({row.case.image_size_px or 0 for row in rows.values()})
    paying = [size for size in sizes if size >= crossing]
    if paying and len(paying) < len(sizes):  # the answer's neighbours were both measured
        assert {paying[0], sizes[sizes.index(paying[0]) - 1]} <= set(seen)
