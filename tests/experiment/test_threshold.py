"""How many runs a study needs on efficiencies that were measured, beside halving alone."""

from __future__ import annotations

import pytest

from gpualloc.bench.grid import GridCell
from gpualloc.experiment import Step, make_question, next_step, threshold
from gpualloc.experiment.plan import most_cases
from gpualloc.records import Measurement
from tests.store.sample_measurements import image_case, measured

# Milliseconds of a step on one GPU and on several, by batch size: rows published with the Sia artifact (SOSP 2023), each of a DeepSpeech2
# training on one node or two. Of all jobs of these clusters: benchmarks/replay_study.py.
BATCHES = (10, 14, 20, 28, 40, 57, 80)
STEPS_MS = {
    "4 T4": ((466.4, 665.8), (558.5, 744.4), (681.2, 829.9), (850.9, 954.6), (1121.7, 1232.9), (1664.2, 1775.2), (2540.6, 2622.9)),
    "4 RTX 2080 Ti": ((299.1, 626.7), (345.5, 651.0), (393.9, 710.1), (529.6, 779.2), (661.8, 912.1), (1075.5, 1220.3), (1523.5, 1596.5)),
    "8 RTX 2080 Ti of 2 nodes": (
        (299.1, 710.4),
        (345.5, 733.5),
        (393.9, 797.3),
        (529.6, 851.4),
        (661.8, 1004.5),
        (1075.5, 1226.2),
        (1523.5, 1717.5),
    ),
    "4 A100": ((404.3, 679.7), (422.3, 678.9), (551.1, 748.7), (691.4, 779.9), (851.9, 965.6), (1133.1, 1240.8), (1498.5, 1474.4)),
}


def cases_needed(steps_ms: dict[int, tuple[float, float]], min_efficiency: float) -> tuple[int, str]:
    """(cases run, why it ended) of a study along the batch sizes."""
    cells = []
    for batch in BATCHES:
        single = image_case(per_device_batch_size=batch, precision="fp16", strategy="single", world_size=1)
        cells += [GridCell(single, None), GridCell(image_case(per_device_batch_size=batch, precision="fp16", world_size=4), None)]
    question = make_question(cells, min_efficiency=min_efficiency)
    rows: dict[str, Measurement] = {}
    while isinstance(step := next_step(question, rows), Step):
        for cell in step.cells:
            step_ms = steps_ms[cell.case.per_device_batch_size][cell.case.world_size > 1]
            rows[cell.case.key()] = measured(cell.case, step_ms / 1e3, spread=0.001, num_rounds=step.rounds)
    assert step.is_certain
    assert len(rows) <= most_cases(question)
    return len(rows), step.why


def test_forecasts_need_fewer_runs_than_halving_and_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [(name, bar) for name in STEPS_MS for bar in (0.6, 0.7, 0.8, 0.9)]

    def answers() -> list[tuple[int, str]]:
        return [cases_needed(dict(zip(BATCHES, STEPS_MS[name], strict=True)), bar) for name, bar in questions]

    forecast = answers()
    monkeypatch.setattr(threshold, "_crossing", lambda *_: None)
    halved = answers()
    assert [why for _, why in forecast] == [why for _, why in halved]
    assert sum(count for count, _ in forecast) <= 116 < 130 < sum(count for count, _ in halved)
