"""How long cases will take: from what the store knows of this device, else from counted operations and a guess at its speed."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpualloc.records import DETAILS, BenchCase, Environment, Measurement

# Nothing is known of the device. Throughput of small models in FP32, operations per second; and the shortest step, launched from
# Python. CPU: MobileNetV2 at 100 px on one core of an AMD EPYC (torch 2.13, 2026-11); GPU: the README's table (H200, torch 2.11).
_GUESSED_FLOPS = {"cuda": 1.0e13, "cpu": 1.0e10}  # per GPU, per core
_MIN_STEP_TIME_S = {"cuda": 0.012, "cpu": 0.02}
# From the start of the processes to the first step, and their end. CPU: two ranks on the same two cores; GPU: one H200.
_GUESSED_START_S = {"cuda": 10.0, "cpu": 8.0}
_COMPILE_S = 60.0
_DECISION_STEPS = 70  # of hook gpualloc_auto before it has made up its mind
_COMPUTE_SHARE = 0.5  # steps under no_sync for each step
_BACKWARD_FACTOR = 3  # operations of forward and backward over those of forward


@dataclass(frozen=True)
class Estimate:
    """Of one round of a case."""

    seconds: float
    basis: str  # "measured before", "scaled from ...", "rough guess"


class Estimator:
    """Estimates for one machine.

    Args:
        environment: of this machine.
        history: earlier measurements, the newest first; those of other devices are left out.
    """

    def __init__(self, environment: Environment, history: Sequence[Measurement]) -> None:
        self._environment = environment
        self._history = [
            row
            for row in history
            if row.status == "ok" and row.step_time_s and row.environment and row.environment.device_name == environment.device_name
        ]

    def estimate(self, case: BenchCase) -> Estimate:
        """Seconds for one round of the case."""
        same = [row for row in self._history if _work(row.case) == _work(case)]
        whole = next((row for row in same if row.wall_time_s and row.case.key() == case.key()), None)
        if whole is not None:
            return Estimate(float(whole.wall_time_s or 0) / whole.num_rounds, "measured before")
        step_time_s, basis = self._step_time_s(case, same)
        return Estimate(self._start_s(case) + _count_steps(case) * step_time_s, basis)

    def _step_time_s(self, case: BenchCase, same: list[Measurement]) -> tuple[float, str]:
        if same:
            return float(same[0].step_time_s or 0), "step measured before"
        work = _relative_work(case)
        alike = [row for row in self._history if (row.case.model, row.case.device) == (case.model, case.device)]
        if alike:
            nearest = min(alike, key=lambda row: _distance(row.case, case))
            scale = work / _relative_work(nearest.case)
            return float(nearest.step_time_s or 0) * scale, f"scaled from {len(alike)} earlier measurements of {case.model}"
        flops = count_step_flops(case)
        if flops is None:
            return _MIN_STEP_TIME_S[case.device], "rough guess, without the model's operations"
        counted = [(count_step_flops(row.case), row.step_time_s) for row in self._history if row.case.device == case.device]
        rates = [count / step_time_s for count, step_time_s in counted if count and step_time_s]
        cores = max(1, self._environment.num_cpus // max(2, case.world_size)) if case.device == "cpu" else 1
        rate = statistics.median(rates) if rates else _GUESSED_FLOPS[case.device] * cores
        basis = f"rough guess from {len(rates)} measurements of other models" if rates else "rough guess"
        return max(_MIN_STEP_TIME_S[case.device], flops / max(1.0, rate)), basis

    def _start_s(self, case: BenchCase) -> float:
        """All but the steps: the median over what was measured of as many processes, else of any number."""
        seen = [
            (row.case.world_size, row.wall_time_s / row.num_rounds - _count_steps(row.case) * float(row.step_time_s or 0))
            for row in self._history
            if row.wall_time_s and row.case.device == case.device and not row.case.compile
        ]
        times_s = [time_s for world_size, time_s in seen if world_size == case.world_size] or [time_s for _, time_s in seen]
        start_s = max(1.0, statistics.median(times_s)) if times_s else _GUESSED_START_S[case.device]
        return start_s + (_COMPILE_S if case.compile else 0)


def count_step_flops(case: BenchCase) -> float | None:
    """Floating-point operations of a rank's step, counted on a model without storage; None where the model cannot run so."""
    alone: dict[str, Any] = {"strategy": "single", "hook": "none", "world_size": 1, "ranks_per_gpu": 1}
    steps: dict[str, Any] = {"num_warmup_steps": 0, "num_steps": 1, "num_repeats": 1, "seed": 0}
    one_sample = replace(case, per_device_batch_size=1, precision="fp32", data="synthetic", device="cpu", **alone, **steps, **DETAILS)
    flops = _count_forward_flops(one_sample)
    return None if flops is None else float(_BACKWARD_FACTOR * flops * case.per_device_batch_size * case.grad_accum_steps)


@functools.cache
def _count_forward_flops(case: BenchCase) -> int | None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gpualloc.workloads import build_model, compute_loss

    inputs: torch.Tensor
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            if case.image_size_px is not None:
                inputs, targets = torch.empty(1, 3, case.image_size_px, case.image_size_px), torch.zeros(1, dtype=torch.int64)
            else:
                inputs = targets = torch.zeros(1, case.sequence_length or 1, dtype=torch.int64)
            compute_loss(
                build_model(case, device=torch.device("meta")).eval(), (inputs, targets)
            )  # batch normalisation does not train on one small image
        return int(counter.get_total_flops())
    except Exception:  # a user's model may do anything; the estimate does without
        return None


def _count_steps(case: BenchCase) -> float:
    """Steps of a round, in steps that synchronise."""
    compute = 0.0 if case.strategy == "single" else _COMPUTE_SHARE
    decision = _DECISION_STEPS if case.hook == "gpualloc_auto" else 0
    return case.num_warmup_steps + decision + case.num_repeats * case.num_steps * (1 + compute)


def _work(case: BenchCase) -> BenchCase:
    """Equal for cases whose steps do the same."""
    return replace(case, num_warmup_steps=0, num_steps=1, num_repeats=1, seed=0)


def _relative_work(case: BenchCase) -> float:
    """Of a rank's step, to compare cases of one model: pixels or tokens."""
    size = case.image_size_px**2 if case.image_size_px is not None else case.sequence_length or 1
    return float(case.per_device_batch_size * case.grad_accum_steps * size)


def _distance(a: BenchCase, b: BenchCase) -> float:
    """Small for cases that take about as long for the same work: a number format counts for most."""
    return (
        4.0 * (a.precision != b.precision)
        + (a.details() != b.details())
        + (a.strategy != b.strategy)
        + (a.hook != b.hook)
        + abs(math.log(_relative_work(a) / _relative_work(b)))
    )
