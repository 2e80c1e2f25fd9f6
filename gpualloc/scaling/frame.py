"""What the columns of a cluster's design are made of: its jobs, batches and placements, as they were when it was fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.scaling.placement import Array, describe, spread_out
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.published_parameters import published_gradient_bytes
from gpualloc.scaling.records import StepQuery, StepRow

_LINK_CENTRES, _JOB_LINK_CENTRES, _BATCH_CENTRES = 30, 10, 8
_INPUT_BOUND = 0.9  # loading over step from which on the step says little of the rest: the rate in training differs from that alone
_LARGEST_FLOOR_RATIO = 3.0  # of its logarithm, either way: beyond, one of the two is not seen


@dataclass(frozen=True, kw_only=True)
class JobFrame:
    """One job of a cluster. Logarithms of batches and sizes are to base 2, others natural."""

    name: str
    log_batches: tuple[float, ...]
    log_sizes: tuple[float, ...]
    precisions: tuple[str | None, ...]
    fixed_time: float  # log of the part of a step that does not grow with the batch, less the mean of the cluster's jobs
    own_sync: float  # log of a single GPU's synchronisation, less the mean of the cluster's jobs
    log_floor_ratio: float  # log of the launch floor over the arithmetic at the middle batch, by a line over the batches
    log_gradient_bytes: float | None  # less the mean of the cluster's jobs
    input_rates: tuple[tuple[float, float], ...]  # (log2 size, median samples per second that the loaders of a node deliver)

    def input_samples_per_s(self, size: float) -> float | None:
        """What the rows of the nearest size say that the loaders of a node deliver; None: no row says it."""
        return min(self.input_rates, key=lambda known: abs(known[0] - np.log2(size)))[1] if self.input_rates else None

    @property
    def log_batch_low(self) -> float:
        return self.log_batches[0]

    @property
    def log_batch_high(self) -> float:
        return self.log_batches[-1]

    @property
    def log_batch_middle(self) -> float:
        return float(np.mean(self.log_batches))

    def batch_centres(self) -> Array:
        """Where the bend of the batch curve has its centres, [m, 1]."""
        width = self.log_batch_high - self.log_batch_low
        return (
            np.linspace(self.log_batch_low, self.log_batch_high, max(2, min(_BATCH_CENTRES, int(width) + 2)))[:, None]
            if width
            else np.zeros((0, 1))
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One cluster."""

    jobs: tuple[JobFrame, ...]
    placements: tuple[str, ...]  # measured with more than one GPU
    centres: tuple[tuple[float, float], ...]  # (log2 nodes, log2 mean GPUs of a node) of the link's bend
    job_centres: tuple[tuple[float, float], ...]
    has_rehearsed: bool
    bytes_shares: tuple[float, float]  # how far bytes rather than launches set the link's time, inside a node and between nodes

    def link_centres(self) -> Array:
        return np.array(self.centres, dtype=float).reshape(-1, 2)

    def job_link_centres(self) -> Array:
        return np.array(self.job_centres, dtype=float).reshape(-1, 2)


def make_frame(rows: Sequence[StepRow], priors: Priors) -> Frame:
    """The frame of one cluster's rows."""
    names = sorted({row.model for row in rows})
    of_job = {name: [row for row in rows if row.model == name] for name in names}
    telling = {name: [row for row in of_job[name] if not is_input_bound(row)] or of_job[name] for name in names}
    fixed = _centred([_log_fixed_time(telling[name], priors) for name in names])
    sync = _centred([_log_own_sync(of_job[name]) for name in names])
    gradients = [next((row.gradient_bytes for row in of_job[name] if row.gradient_bytes), published_gradient_bytes(name)) for name in names]
    log_bytes = _centred([None if value is None else float(np.log(value)) for value in gradients])
    log_batches = {name: tuple(sorted({float(np.log2(row.per_device_batch_size)) for row in of_job[name]})) for name in names}
    jobs = tuple(
        JobFrame(
            name=name,
            log_batches=log_batches[name],
            log_sizes=tuple(sorted({float(np.log2(row.size())) for row in of_job[name]})),
            precisions=tuple(sorted({row.precision for row in of_job[name]}, key=str)),
            fixed_time=fixed[i],
            own_sync=sync[i],
            log_floor_ratio=_log_floor_ratio(telling[name], float(np.mean(log_batches[name]))),
            log_gradient_bytes=log_bytes[i] if gradients[i] is not None else None,
            input_rates=_input_rates(of_job[name]),
        )
        for i, name in enumerate(names)
    )
    places = describe(rows)
    is_multi = places.is_multi > 0
    where = np.stack([places.log_nodes, places.log_mean], 1)[is_multi]
    centres, job_centres = (
        tuple((float(x), float(y)) for x, y in (spread_out(where, most) if len(where) else []))
        for most in (_LINK_CENTRES, _JOB_LINK_CENTRES)
    )
    return Frame(
        jobs=jobs,
        placements=tuple(sorted({key for key, multi in zip(places.keys, is_multi, strict=True) if multi})),
        centres=centres,
        job_centres=job_centres,
        has_rehearsed=any(row.source == "rehearsed" for row in rows),
        bytes_shares=_bytes_shares([row for name in names for row in telling[name]], dict(zip(names, gradients, strict=True)), priors),
    )


def _bytes_shares(rows: Sequence[StepRow], gradients: Mapping[str, float | None], priors: Priors) -> tuple[float, float]:
    """Near 1 where gradients pass slowly, near 0 where so fast that launching and waiting take the time; 0 where bytes are unknown.

    The speed of the links is the jobs' gradient bytes over their exposed wait, or over what a step takes more
    than on one GPU: the geometric mean over jobs of the median over rows.
    """
    known = {name: value for name, value in gradients.items() if value is not None}
    if len(known) < 2:
        return 0.0, 0.0
    alone = {(row.model, row.per_device_batch_size, row.size(), row.precision): row.step_time_s for row in rows if row.num_gpus == 1}
    waits: dict[tuple[bool, str], list[float]] = {}
    for row in rows:
        wait = row.sync_time_s
        if wait is None:
            wait = row.step_time_s - alone.get((row.model, row.per_device_batch_size, row.size(), row.precision), row.step_time_s)
        if row.num_gpus > 1 and row.model in known and wait > 0:
            waits.setdefault((row.num_nodes > 1, row.model), []).append(wait)
    shares = []
    for is_across in (False, True):
        speeds = [known[name] / float(np.median(waits[is_across, name])) / 1e9 for name in known if (is_across, name) in waits]
        speed = float(np.exp(np.mean(np.log(speeds)))) if speeds else priors.launch_bound_gb_per_s
        shares.append(priors.launch_bound_gb_per_s / (priors.launch_bound_gb_per_s + speed))
    return shares[0], shares[1]


def _centred(values: Sequence[float | None]) -> list[float]:
    known = [value for value in values if value is not None]
    middle = float(np.mean(known)) if known else 0.0
    return [0.0 if value is None else value - middle for value in values]


def _log_own_sync(rows: Sequence[StepRow]) -> float | None:
    alone = [row.sync_time_s for row in rows if row.num_gpus == 1 and row.sync_time_s]
    return float(np.log(np.median(alone))) if alone else None


def _log_fixed_time(rows: Sequence[StepRow], priors: Priors) -> float:
    """Half way, in logarithms, between the shortest step and the part of it that a line over the batches says is fixed."""
    alone = [row for row in rows if row.num_gpus == 1]
    used = alone if len({row.per_device_batch_size for row in alone}) >= 3 else rows
    shortest = min(map(compute_time_s, used))
    return float(np.log(shortest) + np.log(max(_line(used)[0], priors.fixed_share_floor * shortest))) / 2


def _log_floor_ratio(rows: Sequence[StepRow], log_batch_middle: float) -> float:
    """At that batch, of the rows at the smallest size in the first precision; 0 where they have one batch, which says nothing of it."""
    size, precision = min(row.size() for row in rows), min((row.precision for row in rows), key=str)
    alike = [row for row in rows if row.size() == size and row.precision == precision]
    alone = [row for row in alike if row.num_gpus == 1]
    used = alone if len({row.per_device_batch_size for row in alone}) >= 2 else alike
    if len({row.per_device_batch_size for row in used}) < 2:
        return 0.0
    floor_s, sample_s = _line(used)
    limit = np.exp(_LARGEST_FLOOR_RATIO)
    return float(np.log(np.clip(floor_s / max(sample_s * 2**log_batch_middle, 1e-12), 1 / limit, limit)))


def _line(rows: Sequence[StepRow]) -> tuple[float, float]:
    """(seconds of a step that stay as the batch grows, seconds for each sample), neither negative; least squares of relative errors."""
    from scipy.optimize import nnls

    times = np.array([compute_time_s(row) for row in rows])
    batches = np.array([row.per_device_batch_size for row in rows], dtype=float)
    (floor_s, sample_s), _ = nnls(np.stack([1 / times, batches / times], 1), np.ones(len(times)))
    return float(floor_s), float(sample_s)


def _input_rates(rows: Sequence[StepRow]) -> tuple[tuple[float, float], ...]:
    rates: dict[float, list[float]] = {}
    for row in rows:
        if row.input_samples_per_s is not None:
            rates.setdefault(float(np.log2(row.size())), []).append(row.input_samples_per_s)
    return tuple((size, float(np.median(rates[size]))) for size in sorted(rates))


def input_time_s(query: StepQuery, samples_per_s: float | None) -> float | None:
    """Seconds that the loaders of the fullest node need for the batches of its GPUs; None where their rate is not known."""
    return None if samples_per_s is None else query.per_device_batch_size * query.fullest_node() / samples_per_s


def is_input_bound(row: StepRow) -> bool:
    """Whether the step took about as long as its loading, so that it tells little of the rest."""
    loading_s = input_time_s(row, row.input_samples_per_s)
    return loading_s is not None and loading_s > _INPUT_BOUND * row.step_time_s


def compute_time_s(row: StepRow) -> float:
    """The step without the wait for gradients; all of it on one GPU."""
    sync = row.sync_time_s if row.sync_time_s is not None and row.num_gpus > 1 else 0.0
    return max(row.step_time_s - sync, 0.05 * row.step_time_s)
