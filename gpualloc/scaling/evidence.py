"""Whether there is enough evidence for a forecast: inside the measured range, outside of it, or too far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.scaling.records import Kind, StepQuery, StepRow

MIN_ROWS = 3  # of a job on a cluster
_FAR = 4.0  # times beyond the measured batches, sizes or numbers of GPUs
_FALLING_BATCH, _FALLING_GPUS = -0.1, -0.3  # slope of log step time per natural logarithm: steeper, the rows contradict what steps can do


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured of one job on one cluster, and of the cluster's other jobs."""

    rows: Sequence[StepRow]  # of the job on the cluster, or carried over from another cluster
    cluster_rows: Sequence[StepRow]  # of all jobs on the cluster
    is_carried: bool = False

    def judge(self, query: StepQuery) -> tuple[Kind, str | None]:
        """(kind, why it is refused or outside of what was measured)."""
        refusal = self._refusal(query)
        if refusal is not None:
            return "refused", f"not enough evidence: {refusal}"
        outside = self._outside(query)
        return ("extrapolates", outside) if outside else ("interpolates", None)

    def _refusal(self, query: StepQuery) -> str | None:
        where = f"{query.model} on {query.cluster}"
        if len(self.rows) < MIN_ROWS:
            missing = f"{len(self.rows)} of at least {MIN_ROWS} rows of {where}" if self.rows else f"no rows of {where}"
            return f"{missing}; measure it next on 1 GPU at 3 batch sizes around {query.per_device_batch_size}"
        falling = self._falling()
        if falling is not None:
            return f"{falling} in the rows of {where}, which no training step does; measure them again, longer, on a GPU without other work"
        batches = sorted({row.per_device_batch_size for row in self.rows})
        if len(batches) == 1 and query.per_device_batch_size != batches[0]:
            return f"{where} was measured at batch {batches[0]} alone; measure batch {query.per_device_batch_size} on 1 GPU next"
        for word, asked, known in (("batch", query.per_device_batch_size, batches), ("size", query.size(), sorted({r.size() for r in self.rows}))):
            if not known[0] / _FAR <= asked <= known[-1] * _FAR:
                return f"{word} {asked:g} is far outside {known[0]:g} to {known[-1]:g} of {where}; measure {word} {asked:g} on 1 GPU next"
        precisions = {row.precision for row in self.rows}
        if query.precision is not None and query.precision not in precisions and precisions != {None}:
            return f"{where} was not measured in {query.precision}; measure it on 1 GPU next"
        if query.num_gpus == 1:
            return None
        linked = [row for row in self.cluster_rows if row.num_gpus > 1]
        if not linked:
            return f"no job was measured on more than 1 GPU of {query.cluster}; measure {query.model} on 2 GPUs next"
        if query.num_nodes > 1 and not any(row.num_nodes > 1 for row in linked):
            return f"no job was measured on more than 1 node of {query.cluster}; measure {query.model} on 2 nodes next"
        most_gpus, most_nodes = max(row.num_gpus for row in linked), max(row.num_nodes for row in linked)
        if query.num_gpus > _FAR * most_gpus or query.num_nodes > _FAR * most_nodes:
            most = f"the {most_gpus} GPUs on up to {most_nodes} nodes that were measured on {query.cluster}"
            return f"{query.num_gpus} GPUs on {query.num_nodes} nodes are far outside {most}; measure {most_gpus * 2} GPUs next"
        return None

    def _outside(self, query: StepQuery) -> str | None:
        if self.is_carried:
            return f"{query.model} was not measured on {query.cluster}, but elsewhere"
        alike = [row for row in self.rows if (row.num_gpus > 1) == (query.num_gpus > 1) and (row.num_nodes > 1) == (query.num_nodes > 1)]
        if not alike:
            where = "on several nodes" if query.num_nodes > 1 else "on several GPUs of a node" if query.num_gpus > 1 else "on 1 GPU"
            return f"{query.model} was not measured {where} of {query.cluster}"
        most_gpus, most_nodes = max(row.num_gpus for row in alike), max(row.num_nodes for row in alike)
        if query.num_gpus > most_gpus or query.num_nodes > most_nodes:
            return f"{query.model} was measured on up to {most_gpus} GPUs of {most_nodes} nodes of {query.cluster}"
        for word, asked, known in (
            ("batch", float(query.per_device_batch_size), [float(row.per_device_batch_size) for row in self.rows]),
            ("size", query.size(), [row.size() for row in self.rows]),
        ):
            if not min(known) <= asked <= max(known):
                return f"{word} {asked:g} is outside {min(known):g} to {max(known):g}, where {query.model} was measured"
        return None

    def _falling(self) -> str | None:
        """Which slope is negative beyond doubt, in words."""
        alone = [row for row in self.rows if row.num_gpus == 1 and row.size() == self.rows[0].size() and row.precision == self.rows[0].precision]
        if _falls([row.per_device_batch_size for row in alone], alone, _FALLING_BATCH):
            return "step time falls as the batch grows"
        batch = min((row.per_device_batch_size for row in self.rows), default=0)
        same = [row for row in self.rows if row.per_device_batch_size == batch and row.size() == self.rows[0].size()]
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
