"""Trains one rank's share of a case on real data, and tests it at the points of its curve."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpualloc.bench import precision as precisions
from gpualloc.bench.measure import Trainer
from gpualloc.quality.data import Split, open_split
from gpualloc.quality.messages import TrainingOrder, TrainingReport
from gpualloc.records import BenchCase

_MAX_TEST_BATCH_TOKENS = 2**14  # samples x tokens of one forward pass of a test
_MAX_TEST_BATCH_PIXELS = 2**21


def train_rank(order: TrainingOrder, *, rank: int, device: torch.device) -> TrainingReport:
    """Trains on this rank, and tests after every stretch of steps. All ranks test on all of the held-out data."""
    case = order.case
    trainer = Trainer(case, rank=rank, device=device)
    split = open_split(case, rank=rank, device=device)
    steps = _point_steps(case.num_steps, order.num_points)
    train_losses, tests, stretch_times_s = [], [], []
    done = 0
    for until in steps:
        _wait_for(device)
        started_s = time.perf_counter()
        losses = []
        for step in range(done, until):
            for group in trainer.optimizer.param_groups:
                group["lr"] = order.learning_rate * (1 - step / case.num_steps)
            losses.append(trainer.step(split.train))
        _wait_for(device)
        stretch_times_s.append(time.perf_counter() - started_s)
        train_losses.append(torch.stack(losses).mean().item())
        tests.append(_test(trainer, split))
        done = until
    stats = trainer.wrapped.handle.stats() if trainer.wrapped.handle else None
    return TrainingReport(
        steps=steps,
        train_losses=train_losses,
        test_losses=[loss for loss, _ in tests],
        test_accuracies=[accuracy for _, accuracy in tests] if case.workload == "image" else None,
        stretch_times_s=stretch_times_s,
        wire_bytes_per_step=stats.wire_bytes // stats.steps if stats else trainer.wrapped.wire_bytes_per_step,
        nonfinite_steps=stats.nonfinite_steps if stats else None,
    )


def _point_steps(num_steps: int, num_points: int) -> list[int]:
    """Steps after which the curve has a point, spread evenly, the last one at the end."""
    return sorted({max(1, round(num_steps * (index + 1) / num_points)) for index in range(num_points)})


def _test(trainer: Trainer, split: Split) -> tuple[float, float]:
    """(mean loss, fraction of right answers) on the held-out data, in the precision of the training."""
    model, precision = trainer.wrapped.model, trainer.case.precision
    loss_sum, num_right, count = 0.0, 0, 0
    model.eval()
    with torch.no_grad(), precisions.autocast(precision, trainer.device.type):
        for inputs, targets in _test_batches(trainer.case, split.test):
            logits = model(precisions.convert_input(inputs, precision)).double().flatten(0, -2)
            loss_sum += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
            num_right += int((logits.argmax(-1) == targets.flatten()).sum())
            count += targets.numel()
    model.train()
    return loss_sum / count, num_right / count


def _test_batches(case: BenchCase, test: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    size = _MAX_TEST_BATCH_PIXELS // case.image_size_px**2 if case.image_size_px else _MAX_TEST_BATCH_TOKENS // (case.sequence_length or 1)
    for start in range(0, len(test[0]), max(1, size)):
        yield test[0][start : start + max(1, size)], test[1][start : start + max(1, size)]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
