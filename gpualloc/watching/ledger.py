"""Samples -> the spans in which a device was paid for and not used, and what they cost. Pure: no clock, no file.

Utilisation is averaged over slots of a minute (a tenth of `for_s` where that is less), so that no single reading decides. A device is
*idle* where its slots stay below `idle_below_percent` for `for_s` or longer. It is *low* where the mean over every `for_s` is below
`bar_percent`: single slots may be above, as those of a job that works in bursts are, but none at the ends; and it lasts as long. Wasted
hours are the time in these spans, times the share of it that was not used:

    wasted_device_hours = sum over the samples in idle and low spans of covers_s * (1 - utilisation_percent / 100) / 3600
    cost                = wasted_device_hours * price per device and hour

Time that no sample covers counts as nothing, and a slot without any ends a span. Where two watches saw the same moment, it counts once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.waste import DeviceUse, HolderWaste, Price, ProcessUse, SpanKind, UserWaste, WasteReport, WasteRule, WasteSpan

_ROUNDING_S = 1e-3
_ROUNDING_PERCENT = 1e-9

_Holder = tuple[str, str | None, int | None, float | None, str | None, str | None]  # who, host, pid, started, user, command
_NOBODY: _Holder = ("nobody", None, None, None, None, None)
_UNKNOWN: _Holder = ("unknown", None, None, None, None, None)


@dataclass(kw_only=True, eq=False)
class _Slot:
    number: int
    start_s: float
    end_s: float = 0.0
    observed_s: float = 0.0
    used_s: float = 0.0
    wasted_by: dict[_Holder, float] = field(default_factory=dict)  # seconds, should the slot turn out to be wasted

    @property
    def utilisation_percent(self) -> float:
        return self.used_s / self.observed_s * 100


@dataclass
class _Mean:
    weighted: float = 0.0
    seconds: float = 0.0

    def add(self, value: float | None, seconds: float) -> None:
        if value is not None:
            self.weighted += value * seconds
            self.seconds += seconds

    def value(self) -> float | None:
        return self.weighted / self.seconds if self.seconds else None


class _ProcessLedger:
    def __init__(self) -> None:
        self.observed_s = 0.0
        self._sm, self._cpu = _Mean(), _Mean()
        self._peak_gpu_memory_bytes: int | None = None
        self._peak_rss_bytes: int | None = None

    def add(self, process: ProcessSample, covered_s: float) -> None:
        self.observed_s += covered_s
        self._sm.add(process.sm_utilisation_percent, covered_s)
        self._cpu.add(process.cpu_percent, covered_s)
        self._peak_gpu_memory_bytes = _larger(self._peak_gpu_memory_bytes, process.gpu_memory_bytes)
        self._peak_rss_bytes = _larger(self._peak_rss_bytes, process.rss_bytes)

    def use(self, device: DeviceSample, process: ProcessSample) -> ProcessUse:
        return ProcessUse(
            host=device.host,
            device_kind=device.kind,
            device_uuid=device.device_uuid,
            device_index=device.device_index,
            pid=process.pid,
            started_unix_s=process.started_unix_s,
            user=process.user,
            command=process.command,
            observed_s=self.observed_s,
            mean_sm_utilisation_percent=self._sm.value(),
            peak_gpu_memory_bytes=self._peak_gpu_memory_bytes,
            mean_cpu_percent=self._cpu.value(),
            peak_rss_bytes=self._peak_rss_bytes,
        )


class DeviceLedger:
    """What the samples of one device, given in the order of time, add up to."""

    def __init__(self, rule: WasteRule) -> None:
        # Live, so without the slot that is not over yet: how long it has been idle, and low: 0 while the mean of the last `for_s` is not.
        self.idle_run_s = 0.0
        self.low_run_s = 0.0
        self._rule = rule
        self._slots: list[_Slot] = []
        self._recent: deque[_Slot] = deque()  # the last `for_s`
        self._until_s = float("-inf")
        self._first: DeviceSample | None = None
        self._last: DeviceSample | None = None
        self._num_samples = 0
        self._unknown_s = 0.0
        self._energy_j: float | None = None
        self._utilisation, self._memory, self._power = _Mean(), _Mean(), _Mean()
        self._peak_memory_bytes: int | None = None
        self._processes: dict[_Holder, tuple[ProcessSample, _ProcessLedger]] = {}

    def add(self, sample: DeviceSample) -> None:
        self._first, self._last = self._first or sample, sample
        self._num_samples += 1
        self._peak_memory_bytes = _larger(self._peak_memory_bytes, sample.memory_used_bytes)
        start_s = max(self._until_s, sample.time_unix_s - (sample.covers_s or 0.0))
        covered_s = sample.time_unix_s - start_s
        for process in sample.processes or ():
            self._processes.setdefault(_holder(sample.host, process), (process, _ProcessLedger()))[1].add(process, max(0.0, covered_s))
        if covered_s <= 0:
            return
        self._until_s = sample.time_unix_s
        self._memory.add(sample.memory_used_bytes, covered_s)
        self._power.add(sample.power_w, covered_s)
        if sample.energy_j is not None and sample.covers_s:
            self._energy_j = (self._energy_j or 0.0) + sample.energy_j * min(1.0, covered_s / sample.covers_s)
        if sample.utilisation_percent is None:
            self._unknown_s += covered_s
            return
        self._utilisation.add(sample.utilisation_percent, covered_s)
        for slot, seconds in self._slots_of(start_s, sample.time_unix_s):
            slot.observed_s += seconds
            slot.used_s += seconds * sample.utilisation_percent / 100
            wasted_s = seconds * (1 - sample.utilisation_percent / 100)
            holders = _holders(sample)
            for holder in holders:
                slot.wasted_by[holder] = slot.wasted_by.get(holder, 0.0) + wasted_s / len(holders)

    def spans(self) -> Iterator[tuple[SpanKind, list[_Slot]]]:
        """The slots of each idle or low span."""
        for low in _low_runs(self._slots, bar_percent=self._rule.bar_percent, for_s=self._rule.for_s - _ROUNDING_S):
            place = 0
            for idle in _runs(low, below_percent=self._rule.idle_below_percent):
                if _observed_s(idle) < self._rule.for_s - _ROUNDING_S:
                    continue
                start = low.index(idle[0], place)
                if start > place:
                    yield "low", low[place:start]
                yield "idle", idle
                place = start + len(idle)
            if place < len(low):
                yield "low", low[place:]

    def use(self, *, price: Price | None, hosts_with_gpus: Collection[str]) -> DeviceUse:
        """Args: hosts_with_gpus: those that are not judged themselves."""
        assert self._first is not None
        assert self._last is not None
        is_judged = self._utilisation.seconds > 0 and not (self._last.kind == "cpu" and self._last.host in hosts_with_gpus)
        spans = tuple(_span(kind, slots) for kind, slots in self.spans()) if is_judged else ()
        wasted_device_hours = sum(span.wasted_device_hours for span in spans)
        return DeviceUse(
            host=self._last.host,
            kind=self._last.kind,
            device_uuid=self._last.device_uuid,
            device_index=self._last.device_index,
            device_name=self._last.device_name,
            first_unix_s=self._first.time_unix_s,
            last_unix_s=self._last.time_unix_s,
            num_samples=self._num_samples,
            observed_s=self._utilisation.seconds,
            unknown_s=self._unknown_s,
            mean_utilisation_percent=self._utilisation.value(),
            mean_memory_used_bytes=self._memory.value(),
            peak_memory_used_bytes=self._peak_memory_bytes,
            memory_total_bytes=self._last.memory_total_bytes,
            mean_power_w=self._power.value(),
            energy_j=self._energy_j,
            is_judged=is_judged,
            idle_s=sum(span.observed_s for span in spans if span.kind == "idle"),
            low_s=sum(span.observed_s for span in spans if span.kind == "low"),
            spans=spans,
            wasted_device_hours=wasted_device_hours,
            cost=_cost(wasted_device_hours, price),
        )

    def process_uses(self) -> list[ProcessUse]:
        assert self._last is not None
        uses = [ledger.use(self._last, process) for process, ledger in self._processes.values()]
        return sorted(uses, key=lambda use: -use.observed_s)

    def _slots_of(self, start_s: float, end_s: float) -> Iterator[tuple[_Slot, float]]:
        """The slots that a time falls into, and how much of it in each."""
        slot_s = self._rule.slot_s
        while end_s - start_s > 1e-9:
            number = int(start_s // slot_s)
            part_end_s = min(end_s, (number + 1) * slot_s)
            if part_end_s <= start_s:  # a boundary that a float cannot hold
                number, part_end_s = number + 1, min(end_s, (number + 2) * slot_s)
            if not self._slots or self._slots[-1].number != number:
                self._close_slot(next_number=number)
                self._slots.append(_Slot(number=number, start_s=start_s))
            slot = self._slots[-1]
            slot.end_s = part_end_s
            yield slot, part_end_s - start_s
            start_s = part_end_s

    def _close_slot(self, *, next_number: int) -> None:
        """Brings the live figures up to the last slot."""
        if not self._slots:
            return
        last, rule = self._slots[-1], self._rule
        if next_number != last.number + 1:
            self._recent.clear()
            self.idle_run_s = self.low_run_s = 0.0
            return
        self._recent.append(last)
        while _observed_s(self._recent) - self._recent[0].observed_s >= rule.for_s - _ROUNDING_S:
            self._recent.popleft()
        recent_s = _observed_s(self._recent)
        self.idle_run_s = self.idle_run_s + last.observed_s if last.utilisation_percent < rule.idle_below_percent else 0.0
        if recent_s < rule.for_s - _ROUNDING_S or _mean_percent(self._recent) >= rule.bar_percent:
            self.low_run_s = 0.0
        elif self.low_run_s:
            self.low_run_s += last.observed_s
        elif last.utilisation_percent < rule.bar_percent:
            below = [slot.utilisation_percent < rule.bar_percent for slot in self._recent]
            self.low_run_s = _observed_s(list(self._recent)[below.index(True) :])


class Ledger:
    """The ledgers of all devices."""

    def __init__(self, rule: WasteRule) -> None:
        self._rule = rule
        self._devices: dict[str, DeviceLedger] = {}
        self._hosts_with_gpus: set[str] = set()

    def add(self, sample: DeviceSample) -> DeviceLedger:
        """Takes a sample, of each device in the order of time, and returns its device's ledger."""
        if sample.kind != "cpu":
            self._hosts_with_gpus.add(sample.host)
        ledger = self._devices.get(sample.device_uuid)
        if ledger is None:
            ledger = self._devices[sample.device_uuid] = DeviceLedger(self._rule)
        ledger.add(sample)
        return ledger

    def report(self, price: Price | None = None) -> WasteReport:
        uses, wasted_s = [], dict[_Holder, float]()
        for ledger in self._devices.values():
            use = ledger.use(price=price, hosts_with_gpus=self._hosts_with_gpus)
            uses.append(use)
            if use.kind != "cpu":
                for _, slots in ledger.spans():
                    for slot in slots:
                        for holder, seconds in slot.wasted_by.items():
                            wasted_s[holder] = wasted_s.get(holder, 0.0) + seconds
        counted = [use for use in uses if use.kind != "cpu"] or uses
        wasted_device_hours = sum(use.wasted_device_hours for use in counted)
        return WasteReport(
            rule=self._rule,
            price=price,
            devices=tuple(uses),
            processes=tuple(use for ledger in self._devices.values() for use in ledger.process_uses()),
            by_process=_by_process(wasted_s, price),
            by_user=_by_user(wasted_s, price),
            observed_device_hours=sum(use.observed_s for use in counted) / 3600,
            wasted_device_hours=wasted_device_hours,
            cost=_cost(wasted_device_hours, price),
        )


def find_waste(samples: Iterable[DeviceSample], rule: WasteRule, price: Price | None = None) -> WasteReport:
    """The report of samples that are, for each device, in the order of time."""
    ledger = Ledger(rule)
    for sample in samples:
        ledger.add(sample)
    return ledger.report(price)


def _larger(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _runs(slots: Iterable[_Slot], *, below_percent: float) -> Iterator[list[_Slot]]:
    run: list[_Slot] = []
    for slot in slots:
        is_below = slot.utilisation_percent < below_percent
        if run and (not is_below or slot.number != run[-1].number + 1):
            yield run
            run = []
        if is_below:
            run.append(slot)
    if run:
        yield run


def _low_runs(slots: list[_Slot], *, bar_percent: float, for_s: float) -> Iterator[list[_Slot]]:
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
    run: list[_Slot] = []
    for place in range(len(slots) + 1):
        is_next_low = place < len(slots) and is_low[place]
        if is_next_low and (not run or slots[place].number == run[-1].number + 1):
            run.append(slots[place])
            continue
        while run and run[-1].utilisation_percent >= bar_percent:
            run.pop()
        start = next((index for index, low in enumerate(run) if low.utilisation_percent < bar_percent), 0)
        if _observed_s(run[start:]) >= for_s:
            yield run[start:]
        run = [slots[place]] if is_next_low else []


def _mean_percent(slots: Iterable[_Slot]) -> float:
    return sum(slot.used_s for slot in slots) / _observed_s(slots) * 100


def _observed_s(slots: Iterable[_Slot]) -> float:
    return sum(slot.observed_s for slot in slots)


def _span(kind: SpanKind, slots: list[_Slot]) -> WasteSpan:
    observed_s, used_s = _observed_s(slots), sum(slot.used_s for slot in slots)
    return WasteSpan(
        kind=kind,
        start_unix_s=slots[0].start_s,
        end_unix_s=slots[-1].end_s,
        observed_s=observed_s,
        mean_utilisation_percent=used_s / observed_s * 100,
        wasted_device_hours=(observed_s - used_s) / 3600,
    )


def _holders(sample: DeviceSample) -> list[_Holder]:
    if sample.processes is None:
        return [_UNKNOWN]
    return [_holder(sample.host, process) for process in sample.processes] or [_NOBODY]


def _holder(host: str, process: ProcessSample) -> _Holder:
    return ("process", host, process.pid, process.started_unix_s, process.user, process.command)


def _by_process(wasted_s: dict[_Holder, float], price: Price | None) -> tuple[HolderWaste, ...]:
    rows = []
    for (who, host, pid, _, user, command), seconds in wasted_s.items():
        hours = seconds / 3600
        kind: Literal["process", "nobody", "unknown"] = "process" if who == "process" else "nobody" if who == "nobody" else "unknown"
        rows.append(
            HolderWaste(who=kind, host=host, pid=pid, user=user, command=command, wasted_device_hours=hours, cost=_cost(hours, price))
        )
    return tuple(sorted(rows, key=lambda row: -row.wasted_device_hours))


def _by_user(wasted_s: dict[_Holder, float], price: Price | None) -> tuple[UserWaste, ...]:
    hours_of: dict[tuple[Literal["user", "nobody", "unknown"], str | None], float] = {}
    for (who, _, _, _, user, _), seconds in wasted_s.items():
        key: tuple[Literal["user", "nobody", "unknown"], str | None] = (
            ("user", user) if user is not None else ("nobody", None) if who == "nobody" else ("unknown", None)
        )
        hours_of[key] = hours_of.get(key, 0.0) + seconds / 3600
    rows = [UserWaste(who=who, user=user, wasted_device_hours=hours, cost=_cost(hours, price)) for (who, user), hours in hours_of.items()]
    return tuple(sorted(rows, key=lambda row: -row.wasted_device_hours))


def _cost(device_hours: float, price: Price | None) -> float | None:
    return None if price is None else device_hours * price.amount_per_hour
