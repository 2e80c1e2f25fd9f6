"""Whether a workload fits a GPU's memory: by what was measured where something was, else by the estimate, held against what was measured.

A case that ran on that GPU type fits it. Else the estimate of gpualloc.workloads.memory counts, times how much the model's measured peaks
exceeded their estimates at most; where only memory of a smaller batch was measured, that much. It may take 85 % of the memory: CUDA's
context, NCCL's buffers and fragmentation are in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpualloc.plan.cluster_file import ClusterNode, is_same_device
from gpualloc.plan.workloads import Workload
from gpualloc.records import BenchCase, Measurement
from gpualloc.strategies import WHOLE_MODEL, num_copies
from gpualloc.workloads import estimate_memory_bytes
from gpualloc.workloads.memory import USABLE_SHARE


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Memory of one GPU during a step."""

    memory_gib: float | None  # None: neither measured nor to be estimated
    source: Literal["measured", "estimated", "table", "unknown"]
    reason: str | None  # why it does not fit; None: it does


class MemoryOf:
    """Memory by measurement and estimate; `measurements` are those of the workload's model, of any size and status."""

    def __init__(self, workload: Workload, measurements: Sequence[Measurement]) -> None:
        self._workload = workload
        self._measurements = [row for row in measurements if _is_model(row.case, workload)]
        ratios = []
        for row in self._measurements:
            estimate = _estimate(row.case)
            if row.status == "ok" and row.peak_memory_bytes and estimate and row.case.device == "cuda":
                ratios.append(row.peak_memory_bytes / estimate)
        self.correction = max([1.0, *ratios])  # never below the estimate: the largest batch was not what was measured

    def fit(self, case: BenchCase, node: ClusterNode, *, stated_gib: float | None = None) -> Fit:
        """Of the case on a GPU of that node. `stated_gib`: by the user's table."""
        same = [row for row in self._measurements if _is_memory_of(row.case, case)]
        here = [row for row in same if row.environment and is_same_device(node, row.environment.device_name, row.case.device)]
        peaks = [row.peak_memory_bytes for row in (here or same) if row.status == "ok" and row.peak_memory_bytes]
        if any(row.status == "ok" for row in here):
            return Fit(memory_gib=max(peaks) / 2**30 if peaks else None, source="measured", reason=None)
        if any(row.status == "oom" for row in here):
            return Fit(memory_gib=None, source="measured", reason="ran out of memory when it was measured")
        source: Literal["measured", "estimated", "table", "unknown"]
        if stated_gib is not None:
            gib, source = stated_gib, "table"
        elif peaks:
            gib, source = max(peaks) / 2**30, "measured"
        else:
            estimate = _estimate(case)
            if estimate is None:
                return Fit(memory_gib=None, source="unknown", reason="its memory is unknown: measure it, or give memory_gib in its rates")
            gib, source = estimate * self.correction / 2**30, "estimated"
        if node.memory_gib is None:
            return Fit(memory_gib=gib, source=source, reason="the cluster file has no memory_gib for these GPUs")
        if gib <= USABLE_SHARE * node.memory_gib:
            return Fit(memory_gib=gib, source=source, reason=None)
        words = {"estimated": "about ", "measured": "", "table": ""}[source]
        return Fit(
            memory_gib=gib,
            source=source,
            reason=f"does not fit: {words}{gib:.1f} GiB ({source}) of {USABLE_SHARE * node.memory_gib:.1f} usable of {node.memory_gib:.0f}",
        )


def _estimate(case: BenchCase) -> int | None:
    try:
        shards = 1 if case.strategy in WHOLE_MODEL else max(1, case.world_size // num_copies(case))
        return estimate_memory_bytes(case, num_shards=shards)
    except Exception:  # a model whose library is not installed here
        return None


def _is_model(case: BenchCase, workload: Workload) -> bool:
    return (case.model, case.workload, case.tuning) == (workload.model, workload.kind, workload.tuning)


def _is_memory_of(measured: BenchCase, case: BenchCase) -> bool:
    """Whether what a rank had in use in one case is what it has in the other: data parallel ranks have the same, however many."""
    same = ("model", "image_size_px", "sequence_length", "tuning", "precision", "per_device_batch_size", "device", "ranks_per_gpu")
    if any(getattr(measured, name) != getattr(case, name) for name in same):
        return False
    if measured.strategy != case.strategy or measured.hook != case.hook:
        return False
    return measured.world_size == case.world_size or case.strategy == "ddp"
