"""Whether there is enough evidence for a forecast: inside the measured range, outside of it, or too far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpualloc.scaling.records import Kind, StepQuery, StepRow

MIN_ROWS = 3  # of a job on a cluster
_FAR = 4.0  # times beyond the measured batches, sizes or numbers of GPUs
_FALLING_BATCH, _FALLING_GPUS = -0.1, -0.3  # slope of log step time per natural logarithm: steeper, the rows contradict what steps can do


@dataclass(frozen=True, kw_only=True)
class Range:
    """What some rows cover."""

    num_rows: int = 0
    most_gpus: int = 0
    most_nodes: int = 0


class Evidence:
    """What was measured of one job on one cluster, and of the cluster's other jobs.

    Args:
        rows: of the job on the cluster, or carried over from another cluster.
        cluster_rows: of all jobs on the cluster.
        is_carried: whether `rows` are from another cluster.
    """

    def __init__(self, *, rows: Sequence[StepRow], cluster_rows: Sequence[StepRow], is_carried: bool = False) -> None:
        self.rows, self.is_carried = rows, is_carried
        self.other_jobs = tuple(sorted({row.model for row in cluster_rows if row.num_gpus > 1} - {row.model for row in rows}))
        self.num_rehearsed = sum(row.source == "rehearsed" for row in rows)
        self._batches = sorted({row.per_device_batch_size for row in rows})
        self._sizes = sorted({row.size() for row in rows})
        self._precisions = {row.precision for row in rows}
        self._linked = _range([row for row in cluster_rows if row.num_gpus > 1])
        self._by_reach = {reach: _range([row for row in rows if _reach(row) == reach]) for reach in ("alone", "inside", "across")}
        self._single_batches = {row.per_device_batch_size for row in rows if row.num_gpus == 1}
        self._falling = _falling(rows)

    def judge(self, query: StepQuery) -> tuple[Kind, str | None]:
        """(kind, why it is refused or outside of what was measured)."""
        refusal = self._refusal(query)
        if refusal is not None:
            return "refused", f"not enough evidence: {refusal}"
        outside = self._outside(query)
        return ("extrapolates", outside) if outside else ("interpolates", None)

    def missing(self, query: StepQuery) -> StepQuery:
        """The measurement that a refused query lacks."""
        if query.num_gpus == 1 or query.per_device_batch_size not in self._single_batches:
            return replace(query, num_nodes=1, num_gpus=1, placement="1")
        if query.num_nodes > 1 and self._linked.most_nodes < 2:
            return replace(query, num_nodes=2, num_gpus=2, placement="11")
        num_gpus = max(2, min(query.num_gpus, 2 * self._linked.most_gpus))
        num_nodes = max(1, min(query.num_nodes, num_gpus))
        return replace(query, num_nodes=num_nodes, num_gpus=num_gpus, placement=str(num_gpus) if num_nodes == 1 else None)

    def _refusal(self, query: StepQuery) -> str | None:
        where = f"{query.model} on {query.cluster}"
        if len(self.rows) < MIN_ROWS:
            missing = f"{len(self.rows)} of at least {MIN_ROWS} rows of {where}" if self.rows else f"no rows of {where}"
            return f"{missing}; measure it next on 1 GPU at 3 batch sizes around {query.per_device_batch_size}"
        if self._falling is not None:
            remedy = "measure them again, longer, on a GPU without other work"
            return f"{self._falling} in the rows of {where}, which no training step does; {remedy}"
        batches, batch = self._batches, query.per_device_batch_size
        if len(batches) == 1 and batch != batches[0]:
            return f"{where} was measured at batch {batches[0]} alone; measure batch {batch} on 1 GPU next"
        for word, asked, known in (("batch", batch, batches), ("size", query.size(), self._sizes)):
            if not known[0] / _FAR <= asked <= known[-1] * _FAR:
                return f"{word} {asked:g} is far outside {known[0]:g} to {known[-1]:g} of {where}; measure {word} {asked:g} on 1 GPU next"
        if query.precision is not None and query.precision not in self._precisions and self._precisions != {None}:
            return f"{where} was not measured in {query.precision}; measure it on 1 GPU next"
        if query.num_gpus == 1:
            return None
        if not self._linked.num_rows:
            return f"no job was measured on more than 1 GPU of {query.cluster}; measure {query.model} on 2 GPUs next"
        if query.num_nodes > 1 and self._linked.most_nodes < 2:
            return f"no job was measured on more than 1 node of {query.cluster}; measure {query.model} on 2 nodes next"
        most_gpus, most_nodes = self._linked.most_gpus, self._linked.most_nodes
        if query.num_gpus > _FAR * most_gpus or query.num_nodes > _FAR * most_nodes:
            most = f"the {most_gpus} GPUs on up to {most_nodes} nodes that were measured on {query.cluster}"
            return f"{query.num_gpus} GPUs on {query.num_nodes} nodes are far outside {most}; measure {most_gpus * 2} GPUs next"
        return None

    def _outside(self, query: StepQuery) -> str | None:
        if self.is_carried:
            return f"{query.model} was not measured on {query.cluster}, but elsewhere"
        reach = _reach(query)
        alike = self._by_reach[reach]
        if not alike.num_rows:
            where = {"alone": "on 1 GPU", "inside": "on several GPUs of a node", "across": "on several nodes"}[reach]
            return f"{query.model} was not measured {where} of {query.cluster}"
        if query.num_gpus > alike.most_gpus or query.num_nodes > alike.most_nodes:
            return f"{query.model} was measured on up to {alike.most_gpus} GPUs of {alike.most_nodes} nodes of {query.cluster}"
        for word, asked, known in (("batch", query.per_device_batch_size, self._batches), ("size", query.size(), self._sizes)):
            if not known[0] <= asked <= known[-1]:
                return f"{word} {asked:g} is outside {known[0]:g} to {known[-1]:g}, where {query.model} was measured"
        return None


def _range(rows: Sequence[StepRow]) -> Range:
    if not rows:
        return Range()
    return Range(num_rows=len(rows), most_gpus=max(row.num_gpus for row in rows), most_nodes=max(row.num_nodes for row in rows))


def _reach(query: StepQuery) -> str:
    return "across" if query.num_nodes > 1 else "inside" if query.num_gpus > 1 else "alone"


def _falling(rows: Sequence[StepRow]) -> str | None:
    """Which slope is negative beyond doubt, in words."""
    if len(rows) < MIN_ROWS:
        return None
    alike = [row for row in rows if (row.size(), row.precision) == (rows[0].size(), rows[0].precision)]
    alone = [row for row in alike if row.num_gpus == 1]
    if _falls([row.per_device_batch_size for row in alone], alone, _FALLING_BATCH):
        return "step time falls as the batch grows"
    batch = min(row.per_device_batch_size for row in alike)
    same = [row for row in alike if row.per_device_batch_size == batch]
    if _falls([row.num_gpus for row in same], same, _FALLING_GPUS):
        return "step time falls as GPUs are added to the same batch on each"
    return None


def _falls(values: Sequence[int], rows: Sequence[StepRow], limit: float) -> bool:
    """Whether log step time falls over log values, by more than `limit` and by three standard errors."""
    if len(set(values)) < MIN_ROWS:
        return False
    x, y = np.log(np.array(values, dtype=float)), np.log([row.step_time_s for row in rows])
    x = x - x.mean()
    slope = float(x @ (y - y.mean()) / (x @ x))
    error = np.sqrt(float(((y - y.mean() - slope * x) ** 2).sum()) / max(len(rows) - 2, 1) / float(x @ x))
    return slope < limit and slope + 3 * error < 0
