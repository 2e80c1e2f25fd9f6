"""Several rounds of a case, each in fresh processes, as one measurement."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from gpualloc.bench.interval import median_interval
from gpualloc.records import Measurement


def pool_rounds(earlier: Measurement, later: Measurement) -> Measurement:
    """The repeats of both, unless one of them was disturbed: then the other's alone.

    A later round that failed leaves the figures as they are, with a note. Both are of the same case, the earlier one is "ok".
    """
    num_rounds = earlier.num_rounds + later.num_rounds
    both: dict[str, Any] = {
        "num_rounds": num_rounds,
        "reason": earlier.reason,
        "asked_batch_size": earlier.asked_batch_size,
        "wall_time_s": (earlier.wall_time_s or 0.0) + (later.wall_time_s or 0.0),
        "notes": tuple(dict.fromkeys((*earlier.notes, *later.notes))),
    }
    if later.status != "ok":
        notes = (*earlier.notes, f"round {num_rounds}: {later.status}: {later.reason}")
        return dataclasses.replace(earlier, **{**both, "notes": notes})
    if bool(earlier.disturbances) != bool(later.disturbances):
        undisturbed, other = (later, earlier) if earlier.disturbances else (earlier, later)
        notes = (*both["notes"], f"a round was left out: {other.disturbances[0]}")
        return dataclasses.replace(undisturbed, **{**both, "notes": notes})
    drift = _describe_drift(earlier, later)
    if drift is not None:
        both["notes"] = (*both["notes"], drift)
    return dataclasses.replace(earlier, **both, **_pooled_figures(earlier, later))


def _pooled_figures(earlier: Measurement, later: Measurement) -> dict[str, Any]:
    times_s = (*earlier.repeat_step_times_s, *later.repeat_step_times_s)
    step_time_s = statistics.median(times_s)
    ci_low_s, ci_high_s = median_interval(times_s) or (None, None)
    compute_time_s = _mean_over_rounds(earlier, later)
    samples = earlier.samples_per_s * earlier.step_time_s if earlier.samples_per_s and earlier.step_time_s else None
    tokens = earlier.tokens_per_s * earlier.step_time_s if earlier.tokens_per_s and earlier.step_time_s else None
    nonfinite = [steps for steps in (earlier.nonfinite_steps, later.nonfinite_steps) if steps is not None]
    return {
        "repeat_step_times_s": times_s,
        "step_time_s": step_time_s,
        "step_time_low_s": min(times_s),
        "step_time_high_s": max(times_s),
        "step_time_ci_low_s": ci_low_s,
        "step_time_ci_high_s": ci_high_s,
        "compute_time_s": step_time_s if earlier.case.strategy == "single" else compute_time_s,
        "exposed_comm_s": None if compute_time_s is None else max(0.0, step_time_s - compute_time_s),
        "samples_per_s": None if samples is None else samples / step_time_s,
        "tokens_per_s": None if tokens is None else tokens / step_time_s,
        "peak_memory_bytes": max(earlier.peak_memory_bytes or 0, later.peak_memory_bytes or 0) or None,
        "nonfinite_steps": max(nonfinite, default=None),
        "disturbances": tuple(dict.fromkeys((*earlier.disturbances, *later.disturbances))),
    }


def _mean_over_rounds(earlier: Measurement, later: Measurement) -> float | None:
    if earlier.compute_time_s is None or later.compute_time_s is None:
        return None
    return (earlier.num_rounds * earlier.compute_time_s + later.num_rounds * later.compute_time_s) / (earlier.num_rounds + later.num_rounds)


def _describe_drift(earlier: Measurement, later: Measurement) -> str | None:
    """A clause where the rounds' intervals do not overlap: they differ by more than the repeats within one do."""
    ends = (earlier.step_time_ci_low_s, earlier.step_time_ci_high_s, later.step_time_ci_low_s, later.step_time_ci_high_s)
    low_a, high_a, low_b, high_b = ends
    if low_a is None or high_a is None or low_b is None or high_b is None or (low_a <= high_b and low_b <= high_a):
        return None
    assert earlier.step_time_s is not None
    assert later.step_time_s is not None
    return f"round {earlier.num_rounds + 1} took {later.step_time_s / earlier.step_time_s - 1:+.1%} a step: the machine drifts"
