"""Allocations over time: as data for a Gantt chart, and as lines of text."""

from __future__ import annotations

from typing import Any

from gpualloc.plan.protocol import Cluster
from gpualloc.plan.simulation.records import SimulationRun

_SHADES = " .:-=+*#%@"  # from none to all GPUs in use


def timeline_data(run: SimulationRun) -> dict[str, Any]:
    """What each job held from when to when, and which nodes failed; seconds from the trace's origin."""
    bars = [
        {
            "job_id": span.job_id,
            "start_s": round(span.start_s, 3),
            "end_s": round(span.end_s, 3),
            "gpu_type": span.allocation.gpu_type,
            "gpus_by_node": dict(span.allocation.gpus_by_node),
        }
        for span in sorted(run.spans, key=lambda span: (span.start_s, span.job_id))
    ]
    return {"policy": run.policy, "spans": bars, "failures": [{"at_s": at, "node_id": node} for at, node in run.failures]}


def utilisation_lines(run: SimulationRun, cluster: Cluster, num_columns: int) -> list[str]:
    """A line for each GPU type: one character for each slice of time, the fuller the more of its GPUs are in use."""
    totals: dict[str, int] = {}
    for node in cluster.nodes:
        totals[node.gpu_type] = totals.get(node.gpu_type, 0) + node.num_gpus
    begin_s = min((span.start_s for span in run.spans), default=0.0)
    slice_s = max(run.end_s - begin_s, 1e-9) / num_columns
    used = {kind: [0.0] * num_columns for kind in totals}
    for span in run.spans:
        row = used[span.allocation.gpu_type]
        first, last = (min(int((at - begin_s) / slice_s), num_columns - 1) for at in (span.start_s, span.end_s))
        for column in range(first, last + 1):
            low, high = begin_s + column * slice_s, begin_s + (column + 1) * slice_s
            row[column] += max(min(span.end_s, high) - max(span.start_s, low), 0.0) / slice_s * span.allocation.num_gpus
    width = max(map(len, totals))
    return [
        f"{kind.ljust(width)} |{''.join(_SHADES[min(round(busy / totals[kind] * 9), 9)] for busy in used[kind])}|"
        for kind in sorted(totals)
    ]
