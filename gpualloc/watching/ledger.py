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
from dataclasses import dataclass

from gpualloc.watching.holders import Holder, holder_of, holders_of, waste_by_process, waste_by_user
from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.spans import ROUNDING_S, Slot, find_spans, mean_percent, span_of, total_observed_s
from gpualloc.watching.waste import DeviceUse, Price, ProcessUse, SpanKind, WasteReport, WasteRule, cost_of


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
        self._slots: list[Slot] = []
        self._recent: deque[Slot] = deque()  # the last `for_s`
        self._until_s = float("-inf")
        self._first: DeviceSample | None = None
        self._last: DeviceSample | None = None
        self._num_samples = 0
        self._unknown_s = 0.0
        self._energy_j: float | None = None
        self._utilisation, self._memory, self._power = _Mean(), _Mean(), _Mean()
        self._peak_memory_bytes: int | None = None
        self._processes: dict[Holder, tuple[ProcessSample, _ProcessLedger]] = {}

    def add(self, sample: DeviceSample) -> None:
        self._first, self._last = self._first or sample, sample
        self._num_samples += 1
        self._peak_memory_bytes = _larger(self._peak_memory_bytes, sample.memory_used_bytes)
        start_s = max(self._until_s, sample.time_unix_s - (sample.covers_s or 0.0))
        covered_s = sample.time_unix_s - start_s
        for process in sample.processes or ():
            self._processes.setdefault(holder_of(sample.host, process), (process, _ProcessLedger()))[1].add(process, max(0.0, covered_s))
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
            holders = holders_of(sample)
            for holder in holders:
                slot.wasted_by[holder] = slot.wasted_by.get(holder, 0.0) + wasted_s / len(holders)

    def spans(self) -> Iterator[tuple[SpanKind, list[Slot]]]:
        """The slots of each idle or low span."""
        return find_spans(self._slots, self._rule)

    def use(self, *, price: Price | None, hosts_with_gpus: Collection[str]) -> DeviceUse:
        """Args: hosts_with_gpus: those that are not judged themselves."""
        assert self._first is not None
        assert self._last is not None
        is_judged = self._utilisation.seconds > 0 and not (self._last.kind == "cpu" and self._last.host in hosts_with_gpus)
        spans = tuple(span_of(kind, slots) for kind, slots in self.spans()) if is_judged else ()
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
            cost=cost_of(wasted_device_hours, price),
        )

    def process_uses(self) -> list[ProcessUse]:
        assert self._last is not None
        uses = [ledger.use(self._last, process) for process, ledger in self._processes.values()]
        return sorted(uses, key=lambda use: -use.observed_s)

    def _slots_of(self, start_s: float, end_s: float) -> Iterator[tuple[Slot, float]]:
        """The slots that a time falls into, and how much of it in each."""
        slot_s = self._rule.slot_s
        while end_s - start_s > 1e-9:
            number = int(start_s // slot_s)
            part_end_s = min(end_s, (number + 1) * slot_s)
            if part_end_s <= start_s:  # a boundary that a float cannot hold
                number, part_end_s = number + 1, min(end_s, (number + 2) * slot_s)
            if not self._slots or self._slots[-1].number != number:
                self._close_slot(next_number=number)
                self._slots.append(Slot(number=number, start_s=start_s))
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
        while total_observed_s(self._recent) - self._recent[0].observed_s >= rule.for_s - ROUNDING_S:
            self._recent.popleft()
        recent_s = total_observed_s(self._recent)
        self.idle_run_s = self.idle_run_s + last.observed_s if last.utilisation_percent < rule.idle_below_percent else 0.0
        if recent_s < rule.for_s - ROUNDING_S or mean_percent(self._recent) >= rule.bar_percent:
            self.low_run_s = 0.0
        elif self.low_run_s:
            self.low_run_s += last.observed_s
        elif last.utilisation_percent < rule.bar_percent:
            below = [slot.utilisation_percent < rule.bar_percent for slot in self._recent]
            self.low_run_s = total_observed_s(list(self._recent)[below.index(True) :])


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
        uses, wasted_s = [], dict[Holder, float]()
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
            by_process=waste_by_process(wasted_s, price),
            by_user=waste_by_user(wasted_s, price),
            observed_device_hours=sum(use.observed_s for use in counted) / 3600,
            wasted_device_hours=wasted_device_hours,
            cost=cost_of(wasted_device_hours, price),
        )


def find_waste(samples: Iterable[DeviceSample], rule: WasteRule, price: Price | None = None) -> WasteReport:
    """The report of samples that are, for each device, in the order of time."""
    ledger = Ledger(rule)
    for sample in samples:
        ledger.add(sample)
    return ledger.report(price)


def _larger(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)
