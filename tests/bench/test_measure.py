"""What a rank does between two clock readings, in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpualloc.bench import measure
from gpualloc.bench.measure import Trainer, measure_rank
from gpualloc.workloads import open_batches
from tests.bench.cases import tiny_case

CPU = torch.device("cpu")
SINGLE = tiny_case(strategy="single", world_size=1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_trained_inside_is_undone(precision: str) -> None:
    case = tiny_case(strategy="single", world_size=1, precision=precision)

    def losses(*, interrupted: bool) -> list[float]:
        trainer, batches = Trainer(case, rank=0, device=CPU), open_batches(case, rank=0, pin_memory=False)
        found = [trainer.step(batches).item()]
        if interrupted:
            other_batches = open_batches(case, rank=1, pin_memory=False)
            with trainer.state_put_back():
                for _ in range(2):
                    trainer.step(other_batches)
        return [*found, *(trainer.step(batches).item() for _ in range(2))]

    assert losses(interrupted=True) == losses(interrupted=False)


@pytest.mark.parametrize(
    ("times_s", "disturbed", "num_repeats"),
    [
        ([1.0, 1.001], "", 2),
        ([1.0, 1.04, 1.0, 1.0], "", 4),  # the fourth makes the interval narrower than 5 %
        ([1.0, 2.0] * 4, "", 8),  # the cap
        ([1.0, 9.0, 1.001], "1", 3),  # the second was disturbed: a third takes its place
        ([1.0] * 8, "01234567", 8),
    ],
)
def test_repeats_go_on_until_enough_undisturbed_ones_agree_up_to_a_cap(
    monkeypatch: pytest.MonkeyPatch, times_s: list[float], disturbed: str, num_repeats: int
) -> None:
    times, watched = iter(times_s), itertools.count()

    def made_up_steps(step: object, num_steps: int, device: torch.device) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        time_s = next(times)
        return [time_s] * num_steps, torch.tensor(time_s), torch.tensor(time_s + 1)

    monkeypatch.setattr(measure, "_time_steps", made_up_steps)
    monkeypatch.setattr(measure.RankWatch, "stop", lambda watch: ["made up"] if str(next(watched)) in disturbed else [])
    report = measure_rank(tiny_case(strategy="single", world_size=1, num_repeats=2, num_warmup_steps=0), rank=0, device=CPU)
    assert len(report.step_times_s) == num_repeats
    assert [bool(reasons) for reasons in report.disturbances] == [str(index) in disturbed for index in range(num_repeats)]
    assert (report.loss_start, report.loss_end) == pytest.approx((times_s[0], times_s[1] + 1))


def test_the_checksum_sees_one_bit() -> None:
    model = torch.nn.Linear(3, 2)
    before = measure._checksum(model)
    assert measure._checksum(model) == before
    with torch.no_grad():
        model.weight.view(torch.int32)[0, 0] ^= 1
    assert measure._checksum(model) != before


def test_warm_up_goes_on_until_grad_scaler_skips_no_step_and_skips_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = iter([65536.0, 32768.0, 16384.0, 16384.0])
    case = tiny_case(strategy="single", world_size=1, precision="fp16", num_warmup_steps=1)
    trainer = measure.Trainer(case, rank=0, device=CPU)
    steps: list[None] = []
    monkeypatch.setattr(trainer.scaler, "get_scale", lambda: scale)
    scale = next(scales)

    def step(batches: object) -> None:
        nonlocal scale
        steps.append(None)
        scale = next(scales)

    monkeypatch.setattr(trainer, "step", step)
    trainer.warm_up(iter([]))
    assert len(steps) == 3  # the last one was not skipped


def test_steps_that_grad_scaler_skips_are_reported_for_every_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    real_time_steps = measure._time_steps

    def with_one_skip(step: Callable[[], torch.Tensor], num_steps: int, device: torch.device) -> Any:
        timed = real_time_steps(step, num_steps, device)
        trainers[0].scaler.update(trainers[0].scaler.get_scale() / 2)
        return timed

    trainers: list[measure.Trainer] = []
    real_init = measure.Trainer.__init__
    monkeypatch.setattr(measure.Trainer, "__init__", lambda self, *a, **k: (trainers.append(self), real_init(self, *a, **k))[1])
    monkeypatch.setattr(measure, "_time_steps", with_one_skip)
    report = measure_rank(tiny_case(strategy="single", world_size=1, precision="fp16", num_repeats=1), rank=0, device=CPU)
    assert report.nonfinite_steps == len(report.step_times_s) >= 1  # one a repeat, of which a busy machine gets more
