"""Slots of time -> the idle and the low spans among them, as `gpualloc.watching.ledger` defines them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gpualloc.watching.holders import Holder
from gpualloc.watching.waste import SpanKind, WasteRule, WasteSpan

ROUNDING_S = 1e-3
_ROUNDING_PERCENT = 1e-9


@dataclass(kw_only=True, eq=False)
class Slot:
    """A stretch of time of one length, and what was seen of it."""

    number: int
    start_s: float
    end_s: float = 0.0
    observed_s: float = 0.0
    used_s: float = 0.0
    wasted_by: dict[Holder, float] = field(default_factory=dict)  # seconds, should the slot turn out to be wasted

    @property
    def utilisation_percent(self) -> float:
        return self.used_s / self.observed_s * 100


def find_spans(slots: list[Slot], rule: WasteRule) -> Iterator[tuple[SpanKind, list[Slot]]]:
    """The slots of each idle or low span."""
    for low in _low_runs(slots, bar_percent=rule.bar_percent, for_s=rule.for_s - ROUNDING_S):
        place = 0
        for idle in _runs(low, below_percent=rule.idle_below_percent):
            if total_observed_s(idle) < rule.for_s - ROUNDING_S:
                continue
            start = low.index(idle[0], place)
            if start > place:
                yield "low", low[place:start]
            yield "idle", idle
            place = start + len(idle)
        if place < len(low):
            yield "low", low[place:]


def span_of(kind: SpanKind, slots: list[Slot]) -> WasteSpan:
    observed_s, used_s = total_observed_s(slots), sum(slot.used_s for slot in slots)
    return WasteSpan(
        kind=kind,
        start_unix_s=slots[0].start_s,
        end_unix_s=slots[-1].end_s,
        observed_s=observed_s,
        mean_utilisation_percent=used_s / observed_s * 100,
        wasted_device_hours=(observed_s - used_s) / 3600,
    )


def mean_percent(slots: Iterable[Slot]) -> float:
    return sum(slot.used_s for slot in slots) / total_observed_s(slots) * 100


def total_observed_s(slots: Iterable[Slot]) -> float:
    return sum(slot.observed_s for slot in slots)


def _runs(slots: Iterable[Slot], *, below_percent: float) -> Iterator[list[Slot]]:
    run: list[Slot] = []
    for slot in slots:
        is_below = slot.utilisation_percent < below_percent
        if run and (not is_below or slot.number != run[-1].number + 1):
            yield run
            run = []
        if is_below:
            run.append(slot)
    if run:
        yield run


def _low_runs(slots: list[Slot], *, bar_percent: float, for_s: float) -> Iterator[list[Slot]]:
    """Runs without a gap, `for_s` or longer, that windows of `for_s` with a mean below the bar cover, and that begin and end below it."""
    is_low = [False] * len(slots)
    first, observed_s, used_s, low_until = 0, 0.0, 0.0, -1
    for place, slot in enumerate(slots):
        if place and slot.number != slots[place - 1].number + 1:
            first, observed_s, used_s = place, 0.0, 0.0
        observed_s, used_s = observed_s + slot.observed_s, used_s + slot.used_s
        while observed_s - slots[first].observed_s >= for_s:  # the shortest window that ends here
            observed_s, used_s = observed_s - slots[first].observed_s, used_s - slots[first].used_s
            first += 1
        if observed_s >= for_s and used_s / observed_s * 100 < bar_percent - _ROUNDING_PERCENT:
            for low in range(max(first, low_until + 1), place + 1):
                is_low[low] = True
            low_until = place
    run: list[Slot] = []
    for place in range(len(slots) + 1):
        is_next_low = place < len(slots) and is_low[place]
        if is_next_low and (not run or slots[place].number == run[-1].number + 1):
            run.append(slots[place])
            continue
        while run and run[-1].utilisation_percent >= bar_percent:
            run.pop()
        start = next((index for index, low in enumerate(run) if low.utilisation_percent < bar_percent), 0)
        if total_observed_s(run[start:]) >= for_s:
            yield run[start:]
        run = [slots[place]] if is_next_low else []
