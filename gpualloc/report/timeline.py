"""One training step as spans on lanes: what computes, what communicates, and what of that overlaps.

On a GPU the lanes are kinds of kernels, told apart by where the host launched them; on a CPU they are the host's own operators.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpualloc.profiling.intervals import union
from gpualloc.profiling.trace import Event, Trace, is_communication, is_host_to_device

# torch records each function of the backward pass so (read in torch 2.11 and 2.13).
_BACKWARD = "autograd::engine::evaluate_function"
_MERGE_SHARE = 0.001  # of the step: gaps between spans of a kind that no reader sees
LANES = ("input", "forward", "backward", "collectives", "optimizer", "copies")


@dataclass(frozen=True, kw_only=True)
class StepSpan:
    """Milliseconds from the start of the step."""

    start_ms: float
    end_ms: float
    number: int | None = None  # of an all-reduce: DDP sends its buckets in this order


@dataclass(frozen=True, kw_only=True)
class StepTimeline:
    step_ms: float
    step_number: int  # of the traced ones, from 1
    lanes: dict[str, tuple[StepSpan, ...]]  # of LANES, those with anything on them
    hidden_ms: float  # collectives while something else computes
    exposed_ms: float


def step_timeline(trace: Trace) -> StepTimeline | None:
    """The traced step of median length; None without two step marks."""
    marks = trace.step_marks()
    if len(marks) < 2:
        return None
    windows = sorted(itertools.pairwise(marks), key=lambda pair: pair[1].start_us - pair[0].end_us)
    before, after = windows[len(windows) // 2]
    start_us, end_us = before.end_us, after.start_us
    if end_us <= start_us:
        return None
    kinds = _on_device(trace) if trace.kernels else _on_host(trace, before.thread)
    gap_us = (end_us - start_us) * _MERGE_SHARE
    lanes: dict[str, tuple[StepSpan, ...]] = {}
    for name in LANES:  # collectives are told apart below
        inside = [(max(a, start_us), min(b, end_us)) for a, b in kinds.get(name, ()) if b > start_us and a < end_us]
        if inside:
            lanes[name] = _spans(inside, start_us, gap_us)
    sums = sorted(pair for pair in kinds.get("sums", ()) if pair[1] > start_us and pair[0] < end_us)
    if "collectives" in lanes:
        number_of = {round((max(a, start_us) - start_us) / 1e3, 6): place + 1 for place, (a, _) in enumerate(sums)}
        unmerged = [(max(a, start_us), min(b, end_us)) for a, b in kinds["collectives"] if b > start_us and a < end_us]
        lanes["collectives"] = tuple(
            StepSpan(start_ms=span.start_ms, end_ms=span.end_ms, number=number_of.get(round(span.start_ms, 6)))
            for span in _spans(unmerged, start_us, None)
        )
    collectives = union([(span.start_ms, span.end_ms) for span in lanes.get("collectives", ())])
    computing = [(span.start_ms, span.end_ms) for name in ("forward", "backward", "optimizer") for span in lanes.get(name, ())]
    total_ms = float(sum(b - a for a, b in collectives))
    hidden_ms = (
        total_ms
        + float(sum(b - a for a, b in union(computing)))
        - float(sum(b - a for a, b in union([*computing, *map(tuple, collectives)])))
    )
    return StepTimeline(
        step_ms=(end_us - start_us) / 1e3,
        step_number=marks.index(before) + 1,
        lanes=lanes,
        hidden_ms=hidden_ms,
        exposed_ms=max(0.0, total_ms - hidden_ms),
    )


Pairs = list[tuple[float, float]]


def _spans(pairs: Sequence[tuple[float, float]], start_us: float, gap_us: float | None) -> tuple[StepSpan, ...]:
    """Args: gap_us: spans that are no further apart become one; None: all stay as they are."""
    merged: Pairs = []
    for a, b in sorted(pairs):
        if gap_us is not None and merged and a - merged[-1][1] <= gap_us:
            merged[-1] = merged[-1][0], max(b, merged[-1][1])
        else:
            merged.append((a, b))
    return tuple(StepSpan(start_ms=(a - start_us) / 1e3, end_ms=(b - start_us) / 1e3) for a, b in merged)


def _on_host(trace: Trace, thread: str) -> dict[str, Pairs]:
    backward = [event.pair for event in trace.ops if event.name.startswith(_BACKWARD)]
    optimizer = _pairs(trace.optimizer_ranges())
    inputs = _pairs(trace.input_ranges())
    elsewhere = _Covered([*backward, *optimizer, *inputs])
    forward = [
        event.pair
        for event in trace.ops
        if event.thread == thread and event.name.startswith("aten::") and not elsewhere.holds(event.start_us)
    ]
    return {
        "input": inputs,
        "forward": forward,
        "backward": backward,
        "collectives": _pairs(trace.host_collectives()),
        "sums": _pairs(event for event in trace.host_collectives() if _is_sum(event)),
        "optimizer": optimizer,
    }


def _on_device(trace: Trace) -> dict[str, Pairs]:
    launched_us = {event.correlation: event.start_us for event in trace.launches if event.correlation is not None}
    backward = _Covered([event.pair for event in trace.ops if event.name.startswith(_BACKWARD)])
    optimizer = _Covered(_pairs(trace.optimizer_ranges()))
    found: dict[str, Pairs] = {
        "input": _pairs(trace.input_ranges()),
        "copies": _pairs(event for event in trace.copies if is_host_to_device(event)),
    }
    for kernel in trace.kernels:
        at_us = kernel.start_us if kernel.correlation is None else launched_us.get(kernel.correlation, kernel.start_us)
        kind = (
            "collectives"
            if is_communication(kernel)
            else "optimizer"
            if optimizer.holds(at_us)
            else "backward"
            if backward.holds(at_us)
            else "forward"
        )
        found.setdefault(kind, []).append(kernel.pair)
        if kind == "collectives" and _is_sum(kernel):
            found.setdefault("sums", []).append(kernel.pair)
    return found


def _is_sum(event: Event) -> bool:
    """ "gloo:all_reduce", "ncclDevKernel_AllReduce_Sum_f32_RING_LL(...)"."""
    return "allreduce" in event.name.lower().replace("_", "")


def _pairs(events: Iterable[Event]) -> Pairs:
    return [event.pair for event in events]


class _Covered:
    """Whether a moment lies in any of many spans."""

    def __init__(self, pairs: Pairs) -> None:
        merged = union(pairs)
        self._starts = [float(a) for a, _ in merged]
        self._ends = [float(b) for _, b in merged]

    def holds(self, moment_us: float) -> bool:
        place = bisect.bisect_right(self._starts, moment_us) - 1
        return place >= 0 and moment_us < self._ends[place]
