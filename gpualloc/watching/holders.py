"""Who held a device while it was not used: the processes on it, nobody, or unknown."""

from __future__ import annotations

from typing import Literal

from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.waste import HolderWaste, Price, UserWaste, cost_of

Holder = tuple[str, str | None, int | None, float | None, str | None, str | None]  # who, host, pid, started, user, command
_NOBODY: Holder = ("nobody", None, None, None, None, None)
_UNKNOWN: Holder = ("unknown", None, None, None, None, None)


def holders_of(sample: DeviceSample) -> list[Holder]:
    if sample.processes is None:
        return [_UNKNOWN]
    return [holder_of(sample.host, process) for process in sample.processes] or [_NOBODY]


def holder_of(host: str, process: ProcessSample) -> Holder:
    return ("process", host, process.pid, process.started_unix_s, process.user, process.command)


def waste_by_process(wasted_s: dict[Holder, float], price: Price | None) -> tuple[HolderWaste, ...]:
    rows = []
    for (who, host, pid, _, user, command), seconds in wasted_s.items():
        hours = seconds / 3600
        kind: Literal["process", "nobody", "unknown"] = "process" if who == "process" else "nobody" if who == "nobody" else "unknown"
        rows.append(
            HolderWaste(who=kind, host=host, pid=pid, user=user, command=command, wasted_device_hours=hours, cost=cost_of(hours, price))
        )
    return tuple(sorted(rows, key=lambda row: -row.wasted_device_hours))


def waste_by_user(wasted_s: dict[Holder, float], price: Price | None) -> tuple[UserWaste, ...]:
    hours_of: dict[tuple[Literal["user", "nobody", "unknown"], str | None], float] = {}
    for (who, _, _, _, user, _), seconds in wasted_s.items():
        key: tuple[Literal["user", "nobody", "unknown"], str | None] = (
            ("user", user) if user is not None else ("nobody", None) if who == "nobody" else ("unknown", None)
        )
        hours_of[key] = hours_of.get(key, 0.0) + seconds / 3600
    rows = [UserWaste(who=who, user=user, wasted_device_hours=hours, cost=cost_of(hours, price)) for (who, user), hours in hours_of.items()]
    return tuple(sorted(rows, key=lambda row: -row.wasted_device_hours))
