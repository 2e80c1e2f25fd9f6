"""What a training hands to a logger: each figure measured, at the steps asked for, by rank 0 alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpualloc.errors import UsageError
from gpualloc.train import step_log, training
from tests.ranks import run_ranks
from tests.train.scenarios import train

TRAINED = {"epoch", "mean_step_time_s", "samples_per_s", "loss"}
COUNTED = {"steps", "wire_mb_per_step", "transfers_per_step", "nonfinite_steps", "saturated_steps", "wire_scale"}


def _append(path: str, metrics: dict[str, float], step: int) -> None:
    with Path(path).open("a") as file:
        print(json.dumps([step, metrics]), file=file)


def _train(rank: int, world_size: int, window_s: float, path: str) -> dict[str, Any]:
    training._REPORT_EVERY_S = window_s
    return train(rank, world_size, {"HOOK": "gpualloc_fp16"}, log=partial(_append, path), log_every_steps=4)


@pytest.mark.parametrize(("window_s", "timed"), [(0.0, (4, 8, 12, 16)), (3600.0, (16,))], ids=["each step", "at the end"])
def test_a_training_logs_what_was_measured(window_s: float, timed: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    ran = run_ranks(_train, 2, window_s, str(path))
    assert [each["steps_done"] for each in ran] == [16, 16]
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert [step for step, _ in logged] == [4, 8, 12, 16]  # once each: not by both ranks
    for step, metrics in logged:
        names = {name.removeprefix("gpualloc/") for name in metrics}
        assert names == COUNTED | (TRAINED if step in timed else {"epoch"})
        assert metrics["gpualloc/steps"] == step
        if step in timed:
            per_s = 8 / metrics["gpualloc/mean_step_time_s"]  # 2 ranks x 4 samples
            assert metrics["gpualloc/samples_per_s"] == pytest.approx(per_s)
            assert metrics["gpualloc/loss"] > 0


def test_a_mean_is_over_all_windows_since_the_last_report() -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    log = step_log.StepLog(lambda metrics, step: logged.append((step, metrics)), every_steps=3, handle=None)
    log.add_window(2.0, 1, samples_per_step=10, loss=5.0)
    log.add_window(1.0, 2, samples_per_step=10, loss=4.0)
    log.after_step(2, epoch=0)
    log.after_step(3, epoch=1)
    log.after_step(6, epoch=1)
    assert logged == [
        (3, {"gpualloc/epoch": 1.0, "gpualloc/mean_step_time_s": 1.0, "gpualloc/samples_per_s": 10.0, "gpualloc/loss": 4.0}),
        (6, {"gpualloc/epoch": 1.0}),
    ]
    with pytest.raises(UsageError, match="log_every_steps is 0"):
        step_log.StepLog(None, every_steps=0, handle=None)
