"""What a strategy or a hook does, against DDP without one on as many ranks, everything else being equal."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings.gains import verdict_on_speed
from gpualloc.findings.labels import parts
from gpualloc.findings.records import Gain
from gpualloc.findings.rows import rows_apart_by, speedup
from gpualloc.records import Measurement


def how_gains(rows: Sequence[Measurement]) -> tuple[Gain, ...]:
    """Every strategy and hook on several ranks against ddp without a hook; groups that lack it are left out."""
    gains = []
    for group in rows_apart_by((row for row in rows if row.case.world_size > 1), "strategy", "hook"):
        base = next((row for row in group if (row.case.strategy, row.case.hook) == ("ddp", "none")), None)
        for row in group:
            if base is None or row is base:
                continue
            ratio = speedup(row, base)
            gains.append(
                Gain(
                    question="hook" if row.case.strategy == "ddp" else "strategy",
                    case=row.case,
                    changed=parts(row.case)["how"],
                    base=parts(base.case)["how"],
                    speedup=ratio,
                    verdict=verdict_on_speed(ratio),
                )
            )
    return tuple(gains)
