"""The same cases in two runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpualloc.records import BenchCase, Environment, Measurement

Verdict = Literal["faster", "slower", "not certain", "no figures"]


@dataclass(frozen=True, kw_only=True)
class ComparedCase:
    """One case measured in run A and again in run B."""

    case: BenchCase
    a: Measurement
    b: Measurement
    step_time_ratio: float | None  # B / A; None where either has no figures
    verdict: Verdict  # on B; "not certain" where the intervals from lowest to highest repeat overlap


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs matched case by case."""

    compared: tuple[ComparedCase, ...]
    only_in_a: tuple[BenchCase, ...]
    only_in_b: tuple[BenchCase, ...]


def compare(a: Sequence[Measurement], b: Sequence[Measurement]) -> Comparison:
    """Matches cases that ask for exactly the same work."""
    in_a = {measurement.case.key(): measurement for measurement in a}
    in_b = {measurement.case.key(): measurement for measurement in b}
    return Comparison(
        compared=tuple(_compare_case(in_a[key], in_b[key]) for key in in_a if key in in_b),
        only_in_a=tuple(in_a[key].case for key in in_a if key not in in_b),
        only_in_b=tuple(in_b[key].case for key in in_b if key not in in_a),
    )


def environment_differences(a: Environment | None, b: Environment | None) -> list[str]:
    """ "field: value in A -> value in B" for what makes the runs incomparable; empty when they are comparable."""
    if a is None or b is None:
        return ["the environment of one run cannot be read"]
    return [
        f"{field}: {before} -> {getattr(b, field)}"
        for field, before in vars(a).items()
        if replace(a, **{field: getattr(b, field)}).key() != a.key()
    ]


def _compare_case(a: Measurement, b: Measurement) -> ComparedCase:
    ratio = b.step_time_s / a.step_time_s if a.step_time_s and b.step_time_s else None
    return ComparedCase(case=a.case, a=a, b=b, step_time_ratio=ratio, verdict=_verdict(a, b))


def _verdict(a: Measurement, b: Measurement) -> Verdict:
    low_a, high_a, low_b, high_b = a.step_time_low_s, a.step_time_high_s, b.step_time_low_s, b.step_time_high_s
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return "no figures"
    if min(len(a.repeat_step_times_s), len(b.repeat_step_times_s)) < 2:  # one repeat has no interval
        return "not certain"
    if high_b < low_a:
        return "faster"
    return "slower" if low_b > high_a else "not certain"
