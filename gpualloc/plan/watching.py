"""Planning again as workloads arrive, end or drift from their forecast: each look compares what is with what the plan was made of.

A workload ends when it is taken out of the file or its samples_done reach its total. It drifts when the store has a rate for the settings
it runs with that lies outside the planned interval and more than 10 % from the planned rate. Running workloads are left where they are
unless moving them gains more than it costs: gpualloc.plan.planner's hysteresis. A file that cannot be read changes nothing until it can.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.plan.cluster_file import ClusterFile
from gpualloc.plan.difference import differences
from gpualloc.plan.outcome import Planned
from gpualloc.plan.planner import make_plan
from gpualloc.plan.preparing import PlanOptions
from gpualloc.plan.rates import Knowledge
from gpualloc.plan.records import Plan
from gpualloc.plan.running import current_rate, elapsed_s
from gpualloc.plan.workloads import Workload, WorkloadsFile, read_workloads

_DRIFT = 0.1  # of the planned rate: repeats of a measurement differ by 2 to 5 %


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line: what happened to a workload, or what becomes of it."""

    at_utc: str
    workload: str | None  # None: of all
    event: str  # "arrived", "ended", "changed", "drifted", "cluster changed", "refused", or a kind of gpualloc.plan.difference
    text: str


class Watcher:
    """Files, store and plan as they were at the last look.

    Args:
        read_cluster: asked at each look.
        read_knowledge: asked at the first look and when the store has changed.
    """

    def __init__(
        self,
        workloads_file: Path,
        *,
        read_cluster: Callable[[], ClusterFile],
        read_knowledge: Callable[[], Knowledge],
        store_path: Path,
        options: PlanOptions,
        current: Plan | None = None,
    ) -> None:
        self.plan = current
        self.planned: Planned | None = None
        self._file = workloads_file
        self._read_cluster, self._read_knowledge, self._store_path = read_cluster, read_knowledge, store_path
        self._options = options
        self._knowledge: Knowledge | None = None
        self._store_state: object = None
        self._known: dict[str, Workload] = {}
        self._cluster: ClusterFile | None = None
        self._told_error: str | None = None
        self._deadlines: dict[str, tuple[float, datetime]] = {}  # workload -> hours, and since when

    def look(self, now_utc: datetime) -> list[Decision]:
        """What happened since the look before and what follows from it; [] where nothing did.

        Raises:
            GpuallocError: at the first look: a file cannot be used.
        """
        at_utc = now_utc.isoformat(timespec="seconds")
        try:
            file, cluster = read_workloads(self._file, may_be_empty=True), self._read_cluster()
            self._look_at_store()
        except GpuallocError as error:
            if self._cluster is None:
                raise
            if str(error) == self._told_error:
                return []
            self._told_error = str(error)
            return [Decision(at_utc=at_utc, workload=None, event="refused", text=f"the plan stays as it is: {error}")]
        self._told_error = None
        assert self._knowledge is not None
        open_ones = {each.name: each for each in file.workloads if not each.is_done}
        events = self._events(open_ones, cluster, at_utc)
        is_first = self._cluster is None
        self._known, self._cluster = open_ones, cluster
        if not events and not is_first:
            return []
        shown = WorkloadsFile.model_construct(
            workloads=[self._with_hours_left(each, now_utc) for each in open_ones.values()],
            sharing=[each for each in file.sharing if set(each.workloads) <= set(open_ones)],
        )
        try:
            found = make_plan(shown, cluster, self._knowledge, self._options, now_utc=now_utc, current=self.plan)
        except UsageError as error:
            if is_first:
                raise
            return [*events, Decision(at_utc=at_utc, workload=None, event="refused", text=f"the plan stays as it is: {error}")]
        assert isinstance(found, Planned), "who cannot be placed waits"
        passed_s = 0.0 if self.plan is None else elapsed_s(self.plan, now_utc)
        changes = differences(self.plan, found.plan, open_ones, elapsed_s=passed_s)
        self.plan, self.planned = found.plan, found
        concerned = {event.workload for event in events}
        told = [each for each in changes if each.kind != "ends" and (is_first or each.kind != "stays" or each.workload in concerned)]
        return [*events, *(Decision(at_utc=at_utc, workload=each.workload, event=each.kind, text=each.text) for each in told)]

    def _with_hours_left(self, workload: Workload, now_utc: datetime) -> Workload:
        """Its deadline from now on: it counts from the first look at which the file had it so."""
        if workload.deadline_h is None:
            return workload
        told_h, since = self._deadlines.get(workload.name, (None, now_utc))
        if told_h != workload.deadline_h:
            since = now_utc
            self._deadlines[workload.name] = workload.deadline_h, since
        passed_h = (now_utc - since).total_seconds() / 3600
        return workload.model_copy(update={"deadline_h": workload.deadline_h - passed_h})

    def _look_at_store(self) -> None:
        state = [_stat(self._store_path), _stat(self._store_path.with_name(self._store_path.name + "-wal"))]
        if self._knowledge is None or state != self._store_state:
            self._knowledge, self._store_state = self._read_knowledge(), state

    def _events(self, workloads: dict[str, Workload], cluster: ClusterFile, at_utc: str) -> list[Decision]:
        def event(workload: str | None, kind: str, text: str) -> Decision:
            return Decision(at_utc=at_utc, workload=workload, event=kind, text=text)

        assigned = {} if self.plan is None else {each.workload: each for each in self.plan.assignments}
        known = self._known if self._cluster is not None else {name: workloads[name] for name in assigned if name in workloads}
        gone = [name for name in {**known, **assigned} if name not in workloads]
        events = [event(name, "arrived", f"{name} arrived") for name in workloads if name not in known]
        events += [event(name, "ended", f"{name} ended") for name in gone]
        for name, workload in workloads.items():
            before = known.get(name)
            progress_alone = {"samples_done": None}
            if before is not None and before.model_copy(update=progress_alone) != workload.model_copy(update=progress_alone):
                events.append(event(name, "changed", f"{name} changed in {self._file.name}"))
            assignment = assigned.get(name)
            if assignment is None or self._knowledge is None:
                continue
            planned, rate = assignment.samples_per_s, current_rate(workload, cluster, assignment, self._knowledge)
            is_outside = not planned.low <= rate.value <= planned.high
            if is_outside and abs(rate.value - planned.value) > _DRIFT * planned.value:
                text = f"{name} drifted: {rate.value:.4g} samples/s ({rate.source}) instead of {planned.value:.4g}"
                events.append(event(name, "drifted", text))
        if self._knowledge is not None and self.plan is not None:
            events += self._now_known(workloads, cluster, event)
        if self._cluster is not None and cluster != self._cluster:
            events.append(event(None, "cluster changed", "the cluster changed"))
        return events

    def _now_known(
        self, workloads: dict[str, Workload], cluster: ClusterFile, event: Callable[[str | None, str, str], Decision]
    ) -> list[Decision]:
        """Workloads that were to be measured and now have a rate."""
        from gpualloc.plan.rates import find_rates

        assert self.plan is not None
        assert self._knowledge is not None
        found = []
        for slot in self.plan.measuring:
            workload = workloads.get(slot.workload)
            if workload is None or slot.gpu_type not in cluster.gpu_types:
                continue
            if find_rates(workload, cluster, slot.gpu_type, [(1, len(slot.devices))], self._knowledge):
                found.append(event(slot.workload, "measured", f"{slot.workload} was measured on {slot.gpu_type}"))
        return found


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
