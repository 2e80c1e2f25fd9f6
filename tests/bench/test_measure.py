"""What a rank does between two clock readings, in this process."""

from __future__ import annotations

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


@pytest.mark.parametrize(("times_s", "num_repeats"), [([1.0, 1.04, 1.0], 2), ([1.0, 1.2, 1.1, 1.1, 1.1], 4)])
def test_repeats_that_differ_bring_more_up_to_a_cap(monkeypatch: pytest.MonkeyPatch, times_s: list[float], num_repeats: int) -> None:
    times = iter(times_s)

    def made_up_steps(step: object, num_steps: int, device: torch.device) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        time_s = next(times)
        return [time_s] * num_steps, torch.tensor(time_s), torch.tensor(time_s + 1)

    monkeypatch.setattr(measure, "_time_steps", made_up_steps)
    report = measure_rank(tiny_case(strategy="single", world_size=1, num_repeats=2, num_warmup_steps=0), rank=0, device=CPU)
    assert len(report.step_times_s) == num_repeats
    assert (report.loss_start, report.loss_end) == pytest.approx((times_s[0], times_s[1] + 1))


def test_the_checksum_sees_one_bit() -> None:
    model = torch.nn.Linear(3, 2)
    before = measure._checksum(model)
    assert measure._checksum(model) == before
    with torch.no_grad():
        model.weight.view(torch.int32)[0, 0] ^= 1
    assert measure._checksum(model) != before
