"""From one cluster to another: what a job is like travels, what a link is like does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gpualloc.errors import UsageError
from gpualloc.profiling.peaks import find_memory_gb_s
from gpualloc.scaling.fit import ClusterFit
from gpualloc.scaling.frame import is_input_bound
from gpualloc.scaling.records import StepRow

_MIN_LINKED_ROWS = 12  # on several GPUs: below, a job's own coefficients say little
_KEPT = 0.7  # of a job's departure from the others, on another cluster
_TRAVELLING_SD = 0.1  # of that departure
_RATIO_SD = 0.25  # of the ratio of two clusters' single-GPU times from job to job, where too few jobs were measured on both to tell
# Of log(published memory bandwidth of one GPU / of another) so much shows in the step time, and its standard deviation: jobs whose
# loader or launches bound them gain nothing. Chosen on T4, RTX 2080 Ti and A100, where 86 % of the rows lie in the 90 % interval
# (benchmarks/compare_forecast.py --splits published).
_PUBLISHED_SHARE, _PUBLISHED_SD = 0.7, 0.46


def published_ratio(name: str, known: str) -> tuple[float, float]:
    """(how many times as fast the GPU of cluster `name` computes as that of `known`, standard deviation of its logarithm).

    From the published memory bandwidth: over whole training steps GPUs differ by that more than by their peak operations.

    Raises:
        UsageError: a name does not begin with that of a GPU in gpualloc.profiling.peaks.
    """
    new_gb_s, known_gb_s = map(find_memory_gb_s, (name, known))
    if new_gb_s is None or known_gb_s is None:
        unknown = name if new_gb_s is None else known
        raise UsageError(f"no memory bandwidth is published here for {unknown!r}; give the ratios: --like '{name}={known}:1.9:1'")
    log_ratio = float(np.log(new_gb_s / known_gb_s))
    return float(np.exp(_PUBLISHED_SHARE * log_ratio)), _PUBLISHED_SD * abs(log_ratio)


def travelling_means(name: str, fits: Mapping[str, ClusterFit], rows: Sequence[StepRow]) -> dict[str, tuple[float, float]]:
    """Priors of the jobs' own coefficients on cluster `name` from the other clusters, by coefficient name."""
    found: dict[str, list[float]] = {}
    for cluster, fit in fits.items():
        if cluster == name:
            continue
        linked = {job.name: sum(r.num_gpus > 1 for r in rows if r.cluster == cluster and r.model == job.name) for job in fit.frame.jobs}
        known = {f"{job} {kind}" for job, count in linked.items() if count >= _MIN_LINKED_ROWS for kind in _TRAVELLING}
        for coefficient, value in zip(fit.names, fit.coefficients, strict=True):
            if coefficient in known:
                found.setdefault(coefficient, []).append(float(value))
    return {coefficient: (_KEPT * float(np.mean(values)), _TRAVELLING_SD) for coefficient, values in found.items()}


_TRAVELLING = ("several GPUs", "GPUs of a node", "several, batch", "node, batch", "gradients", "gamma")


def carried_rows(cluster: str, job: str, rows: Sequence[StepRow]) -> tuple[list[StepRow], float, str] | None:
    """A job's single-GPU rows of another cluster, as they would be on this one by the ratio of the jobs measured on both.

    Returns:
        (rows, standard deviation that they share, the cluster they come from), or None where no job was measured on both.
    """
    here = _single(rows, cluster)
    best: tuple[list[StepRow], float, str] | None = None
    for other in sorted({row.cluster for row in rows} - {cluster}):
        there = _single(rows, other)
        if len(there.get(job, {})) < 3:
            continue
        ratios = [_log_ratio(here[name], there[name]) for name in here if name in there and name != job]
        known = [ratio for ratio in ratios if ratio is not None]
        if not known:
            continue
        middle = float(np.median(known))
        deviation = 1.4826 * float(np.median(np.abs(np.array(known) - middle))) if len(known) >= 3 else _RATIO_SD
        sd = float(np.hypot(deviation, _RATIO_SD / len(known)))
        if best is None or sd < best[1]:
            moved = [replace(row, cluster=cluster, step_time_s=row.step_time_s * float(np.exp(middle))) for row in there[job].values()]
            best = (moved, sd, other)
    return best


def _single(rows: Sequence[StepRow], cluster: str) -> dict[str, dict[tuple[object, ...], StepRow]]:
    found: dict[str, dict[tuple[object, ...], StepRow]] = {}
    for row in rows:
        if row.cluster == cluster and row.num_gpus == 1 and not is_input_bound(row):
            found.setdefault(row.model, {})[row.per_device_batch_size, row.size(), row.precision] = row
    return found


def _log_ratio(here: Mapping[tuple[object, ...], StepRow], there: Mapping[tuple[object, ...], StepRow]) -> float | None:
    shared = [key for key in here if key in there]
    return float(np.mean([np.log(here[key].step_time_s / there[key].step_time_s) for key in shared])) if shared else None


def scaled_fit(fit: ClusterFit, *, compute_ratio: float, link_ratio: float) -> ClusterFit:
    """The fit of a cluster whose GPUs compute `compute_ratio` times as fast and whose links are `link_ratio` times as fast."""
    levels = {f"{job.name} level" for job in fit.frame.jobs}
    links = {"inside a node", "between nodes"}
    shift = [-np.log(compute_ratio) if n in levels else -np.log(link_ratio) if n in links else 0.0 for n in fit.names]
    return replace(fit, coefficients=fit.coefficients + np.array(shift))
