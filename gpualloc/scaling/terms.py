"""The step-time equation, one named function per term.

    step    = (rest^16 + input_time(job, batch, GPUs of a node)^16)^(1/16)                   overlapped_time
    rest    = (compute^gamma + link^gamma)^(1/gamma)
    compute = (launch_floor(job) + arithmetic(job, batch, size, precision))
              * exp(single_gpu_curve(job, batch, size) + contention(job, GPUs of a node, nodes, batch))
    log link = link_time(placement) + gradient_load(job, placement)

The floor is what a step takes however small its batch: kernel launches and the optimiser. The curve is what the measured single-GPU times
depart from floor and arithmetic. The input is the loaders' time where their rate is known; they work ahead, so that the slower of both sets
the step. `link_time` is the cluster's, learned from all of its jobs. The overlap by a gamma-norm is that of Pollux
(Qiao et al., OSDI 2021, equation 11); Pollux's own compute and link terms are lines in the batch and in the number of GPUs.

Every term is a sum of columns times unknown coefficients. Each has a prior: mean, standard deviation, and whether its tails are heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpualloc.scaling.frame import Frame, JobFrame, input_time_s
from gpualloc.scaling.placement import Array, Placements, describe, smooth_basis
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import StepQuery, StepRow

Part = Literal["floor", "arithmetic", "scale", "curve", "contention", "input", "link", "overlap", "total"]


# Of input and the rest: the larger of two that vary. With 8 readers, two batches ahead each, whose batches' times vary by 20 %, a simulated
# step as long as its loading takes 4 to 6 % longer than either, with one reader 2 %, here 4.4 %. A power of two, so that without input the
# rest comes out to the bit.
INPUT_GAMMA = 16.0


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of the design that share a prior."""

    part: Part
    name: str
    values: Array  # [rows, columns]
    sd: float
    mean: float = 0.0
    has_heavy_tails: bool = False


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the terms read of rows or queries."""

    queries: Sequence[StepQuery]
    places: Placements
    job: Array  # index into frame.jobs; -1 where unknown
    log_batch: Array
    log_size: Array
    relative_batch: Array  # -1 at the job's smallest measured batch, 1 at its largest
    log_input: Array  # natural, of the seconds that the loaders of the fullest node need; -inf where their rate is not known


def overlapped_time(log_compute: Array, log_link: Array, gamma: Array | float) -> Array:
    """log of the gamma-norm of computing and communicating: gamma 1 adds them, a large gamma hides the shorter (OSDI 2021, equation 11)."""
    return np.asarray(np.logaddexp(gamma * log_compute, gamma * log_link) / gamma)


def read_rows(queries: Sequence[StepQuery], frame: Frame) -> Rows:
    """Rows or queries as the terms need them."""
    index = {job.name: number for number, job in enumerate(frame.jobs)}
    job = np.array([index.get(query.model, -1) for query in queries])
    log_batch = np.log2(np.array([query.per_device_batch_size for query in queries], dtype=float))
    low = np.array([frame.jobs[number].log_batch_low if number >= 0 else 0.0 for number in job])
    high = np.array([frame.jobs[number].log_batch_high if number >= 0 else 0.0 for number in job])
    relative = np.clip(2 * (log_batch - low) / np.maximum(high - low, 1e-9) - 1, -1.5, 1.5)
    return Rows(
        queries=queries,
        places=describe(queries),
        job=job,
        log_batch=log_batch,
        log_size=np.log2(np.array([query.size() for query in queries])),
        relative_batch=np.where(high > low, relative, -1.0),
        log_input=np.array([_log_input(query, frame.jobs[i] if i >= 0 else None) for query, i in zip(queries, job, strict=True)]),
    )


def _log_input(query: StepQuery, job: JobFrame | None) -> float:
    time_s = input_time_s(query, query.input_samples_per_s or (job.input_samples_per_s(query.size()) if job else None))
    return -math.inf if time_s is None else math.log(time_s)


def launch_floor(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """log of each job's launch floor over its arithmetic in the middle of the measured batches: kernel launches and the optimiser."""
    return [
        _column("floor", f"{job.name} floor", (rows.job == number) * 1.0, priors.floor_ratio, mean=job.log_floor_ratio)
        for number, job in enumerate(frame.jobs)
    ]


def arithmetic(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """Each job's arithmetic, by prior in proportion to the batch: slopes per doubling of batch, pixels or tokens, and the precision.

    Its level scales the floor, too, which is told as a ratio. By prior all jobs take the mean step.
    """
    columns = []
    for number, job in enumerate(frame.jobs):
        is_job = (rows.job == number) * 1.0
        batch = is_job * (rows.log_batch - job.log_batch_middle)
        columns += [
            _column("scale", f"{job.name} level", is_job, 5.0, mean=-float(np.log1p(np.exp(job.log_floor_ratio)))),
            _column("arithmetic", f"{job.name} batch slope", batch, priors.batch_slope, mean=float(np.log(2))),
        ]
        if job.log_sizes[0] != job.log_sizes[-1]:
            size = is_job * (rows.log_size - job.log_sizes[0])
            columns.append(_column("arithmetic", f"{job.name} size slope", size, priors.size_slope))
        for precision in job.precisions[1:]:
            has_it = np.array([query.precision == precision for query in rows.queries]) * is_job
            columns.append(_column("arithmetic", f"{job.name} in {precision}", has_it, priors.precision_shift))
    return columns


def single_gpu_curve(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """How each job's measured single-GPU times depart from floor and arithmetic: a smooth bend, a jump at each batch measured."""
    columns = []
    for number, job in enumerate(frame.jobs):
        is_job = (rows.job == number) * 1.0
        columns += [
            _block(
                "curve",
                f"{job.name} batch bend",
                is_job,
                smooth_basis(rows.log_batch[:, None], job.batch_centres(), 1.5),
                priors.batch_bend,
            ),
            _block("curve", f"{job.name} batch jump", is_job, _same(rows.log_batch, job.log_batches), priors.batch_jump),
        ]
        if job.log_sizes[0] != job.log_sizes[-1]:
            bends = smooth_basis(rows.log_size[:, None], np.array(job.log_sizes)[:, None], 1.5)
            columns.append(_block("curve", f"{job.name} size bend", is_job, bends, priors.batch_bend))
    return columns


def contention(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """Computing changes where GPUs share a node's cores, memory and buses, or run with DDP at all: by all jobs alike and by each."""
    places = rows.places
    batch = rows.relative_batch
    columns = [
        _column("contention", "several GPUs", places.is_multi, priors.shared_contention),
        _column("contention", "GPUs of a node", places.log_max, priors.shared_contention),
        _column("contention", "nodes", places.log_nodes, priors.contention),
        _column("contention", "several GPUs, batch", places.is_multi * batch, priors.contention),
        _column("contention", "GPUs of a node, batch", places.log_max * batch, priors.contention),
    ]
    for number, job in enumerate(frame.jobs):
        is_job = (rows.job == number) * 1.0
        columns += [
            _column("contention", f"{job.name} several GPUs", is_job * places.is_multi, priors.contention, heavy=True),
            _column("contention", f"{job.name} GPUs of a node", is_job * places.log_max, priors.contention, heavy=True),
            _column("contention", f"{job.name} nodes", is_job * places.log_nodes, priors.contention, heavy=True),
            _column("contention", f"{job.name} several, batch", is_job * places.is_multi * batch, priors.contention, heavy=True),
            _column("contention", f"{job.name} node, batch", is_job * places.log_max * batch, priors.contention, heavy=True),
        ]
    return columns


def input_time(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """How much longer a job's loaders need in training than their rate, measured alone, says."""
    has_input = np.isfinite(rows.log_input) * 1.0
    return [
        _column("input", f"{job.name} input", (rows.job == number) * has_input, priors.input_rate)
        for number, job in enumerate(frame.jobs)
        if job.input_rates
    ]


def link_time(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """The cluster's links: a level and slopes inside a node and between nodes, a smooth bend, and each measured placement's own."""
    places = rows.places
    inside, across = places.is_inside, places.is_across
    uneven = places.log_max - places.log_mean
    columns = [
        _column("link", "inside a node", inside, priors.link_level),
        _column("link", "between nodes", across, priors.link_level),
        _column("link", "inside, GPUs", inside * (places.log_mean - 1), priors.link_slope),
        _column("link", "between, nodes", across * (places.log_nodes - 1), priors.link_slope),
        _column("link", "between, GPUs of a node", across * places.log_mean, priors.link_slope),
        _column("link", "two nodes", places.is_pair, priors.link_pair),
        _column("link", "two nodes, GPUs of a node", places.is_pair * places.log_mean, priors.link_pair / 2),
        _column("link", "between, uneven", across * uneven, priors.link_slope / 2),
        _block("link", "bend", places.is_multi, smooth_basis(_where(places), frame.link_centres(), 1.0), priors.link_bend),
    ]
    index = {key: number for number, key in enumerate(frame.placements)}
    own = np.zeros((len(places.keys), len(index)))
    for row, key in enumerate(places.keys):
        if key in index:
            own[row, index[key]] = 1.0
    return [*columns, _block("link", "placement", places.is_multi, own, priors.link_placement)]


def gradient_load(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """How much each job asks of the links: from its gradient bytes, else from what one GPU tells of them, and how it departs.

    Slow links take the time that the bytes need. Fast ones take the time that launching and waiting need, which a step's fixed part
    (launches, optimiser) and the synchronisation of one GPU with itself tell of; these also stand for bytes that are unknown.
    """
    places = rows.places
    inside, across, jobs = places.is_inside, places.is_across, frame.jobs
    by_bytes = inside * frame.bytes_shares[0] + across * frame.bytes_shares[1]
    by_time = places.is_multi - by_bytes

    def told(values: Sequence[float]) -> Array:
        return np.array([values[int(number)] if number >= 0 else 0.0 for number in rows.job])

    loads = [job.fixed_time if job.log_gradient_bytes is None else job.log_gradient_bytes for job in jobs]
    columns = [
        _column("link", "gradient bytes", told(loads) * by_bytes, priors.told_sd, mean=1.0),
        _column("link", "fixed time", told([job.fixed_time for job in jobs]) * by_time, priors.told_sd, mean=1.0),
        _column("link", "own synchronisation", told([job.own_sync for job in jobs]) * by_time, priors.told_sd, mean=priors.from_sync),
    ]
    bends = smooth_basis(_where(places), frame.job_link_centres(), 1.5)
    for number, job in enumerate(frame.jobs):
        is_job = (rows.job == number) * 1.0
        columns += [
            _column("link", f"{job.name} gradients", is_job * places.is_multi, priors.job_link, heavy=True),
            _column("link", f"{job.name} side", is_job * (across - inside), priors.job_link / 2, heavy=True),
            _column("link", f"{job.name} inside, GPUs", is_job * inside * (places.log_mean - 1), priors.job_link, heavy=True),
            _column("link", f"{job.name} nodes", is_job * across * (places.log_nodes - 1), priors.job_link, heavy=True),
            _column("link", f"{job.name} GPUs of a node", is_job * across * places.log_mean, priors.job_link, heavy=True),
            _column("link", f"{job.name} two nodes", is_job * places.is_pair, priors.job_link, heavy=True),
            _block("link", f"{job.name} bend", is_job * places.is_multi, bends, priors.job_link),
        ]
    return columns


def overlap(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """log gamma of the cluster and each job's departure from it."""
    ones = np.ones(len(rows.job))
    columns = [_column("overlap", "gamma", ones, priors.overlap_sd, mean=priors.overlap_log_gamma)]
    return columns + [
        _column("overlap", f"{job.name} gamma", (rows.job == i) * 1.0, priors.job_overlap) for i, job in enumerate(frame.jobs)
    ]


def rehearsal_bias(rows: Rows, frame: Frame, priors: Priors) -> list[Columns]:
    """Rehearsed steps are all too long or too short by one factor, which measured rows beside them reveal. A forecast has none."""
    is_rehearsed = np.array([isinstance(row, StepRow) and row.source == "rehearsed" for row in rows.queries]) * 1.0
    return [_column("total", "rehearsal bias", is_rehearsed, priors.rehearsal_bias)] if frame.has_rehearsed else []


TERMS: tuple[Callable[[Rows, Frame, Priors], list[Columns]], ...] = (
    launch_floor,
    arithmetic,
    single_gpu_curve,
    contention,
    input_time,
    link_time,
    gradient_load,
    overlap,
    rehearsal_bias,
)


def _column(part: Part, name: str, values: Array, sd: float, *, mean: float = 0.0, heavy: bool = False) -> Columns:
    return Columns(part=part, name=name, values=values[:, None], sd=sd, mean=mean, has_heavy_tails=heavy)


def _block(part: Part, name: str, mask: Array, values: Array, sd: float) -> Columns:
    return Columns(part=part, name=name, values=values * mask[:, None], sd=sd)


def _same(values: Array, known: Sequence[float]) -> Array:
    return np.asarray((np.abs(values[:, None] - np.array(known)[None]) < 1e-9) * 1.0)


def _where(places: Placements) -> Array:
    return np.stack([places.log_nodes, places.log_mean], 1)


__all__ = ["TERMS", "Columns", "JobFrame", "Rows", "overlapped_time", "read_rows"]
