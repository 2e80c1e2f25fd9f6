"""Coefficients of one cluster: the most probable ones and how far they may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpualloc.scaling.frame import Frame, compute_time_s, make_frame
from gpualloc.scaling.placement import Array
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import StepQuery, StepRow
from gpualloc.scaling.terms import INPUT_GAMMA, TERMS, Columns, Part, Rows, overlapped_time, read_rows

_PARTS: tuple[Part, ...] = ("floor", "arithmetic", "scale", "curve", "contention", "input", "link", "overlap", "total")
_WITHOUT_LINK = _PARTS[:6]  # computing and input
NO_LINK = -60.0  # log of a link time that is nothing
_BATCHES_OF_FULL_JOB = 5  # of those measured in more: the curve of a job over batches is smooth
# Chosen by benchmarks/compare_forecast.py on 2026-11-27: with 40 robust steps the error from one GPU's rows is 13.5 % instead of 12.7 %.
_PLAIN_STEPS, _ROBUST_STEPS = 5, 5
_LARGEST_MOVE = 1.5  # of a coefficient in one of the first steps


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Logarithms of the seconds of a step's parts, one entry per row, and what they change by with the coefficients."""

    floor: Array
    arithmetic: Array
    alone: Array  # floor and arithmetic with the curve through the measured single-GPU times
    compute: Array  # with contention
    link: Array
    rest: Array  # computing and link
    loading: Array  # -inf where the loaders' rate is not known
    loaded: Array  # with input
    step: Array  # with the bias of rehearsals
    slopes: Array  # of the step, [rows, coefficients]
    link_share: Array  # of the link in the step
    input_share: Array
    without_link: Array  # computing and input
    without_link_slopes: Array  # [rows, coefficients of `_WITHOUT_LINK`]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Rows as matrices, the coefficients in the order of `_PARTS`."""

    parts: dict[Part, Array]  # [rows, coefficients of the part]
    log_input: Array  # of the seconds that the loaders need by what is known of them; -inf where nothing is
    is_multi: Array
    mean: Array  # prior of the coefficients
    sd: Array
    has_heavy_tails: Array  # 1 where it is true
    names: tuple[str, ...]

    @property
    def num_without_link(self) -> int:
        """Coefficients of computing and input, the first ones."""
        return sum(self.parts[part].shape[1] for part in _WITHOUT_LINK)

    def forward(self, coefficients: Array, level: float) -> StepTimes:
        """The equation of gpualloc.scaling.terms."""
        ends = np.cumsum([self.parts[part].shape[1] for part in _PARTS])
        split = dict(zip(_PARTS, np.split(coefficients, ends[:-1]), strict=True))
        log = {part: self.parts[part] @ split[part] for part in _PARTS}
        floor, arithmetic = (level + log["scale"] + log[part] for part in ("floor", "arithmetic"))
        alone = np.logaddexp(floor, arithmetic)
        floor_share = np.exp(floor - alone)
        compute = alone + log["curve"] + log["contention"]
        link = np.where(self.is_multi > 0, level + log["link"], NO_LINK)
        gamma = np.exp(log["overlap"])
        rest = overlapped_time(compute, link, gamma)
        link_share = np.exp(np.minimum(gamma * (link - rest), 0.0))
        by_log_gamma = (1 - link_share) * compute + link_share * link - rest
        loading = self.log_input + log["input"]
        loaded, without_link = (overlapped_time(part, loading, INPUT_GAMMA) for part in (rest, compute))
        input_share, input_share_without_link = (
            np.exp(np.minimum(INPUT_GAMMA * (loading - whole), 0.0)) for whole in (loaded, without_link)
        )

        def slopes(by_compute: Array, by_input: Array) -> list[Array]:
            factors = (by_compute * floor_share, by_compute * (1 - floor_share), by_compute, by_compute, by_compute, by_input)
            return [self.parts[part] * factor[:, None] for part, factor in zip(_WITHOUT_LINK, factors, strict=True)]

        factors = {"link": (1 - input_share) * link_share, "overlap": (1 - input_share) * by_log_gamma, "total": np.ones(len(loaded))}
        others = [self.parts[part] * factors[part][:, None] for part in _PARTS[len(_WITHOUT_LINK) :]]
        return StepTimes(
            floor=floor,
            arithmetic=arithmetic,
            alone=alone + log["curve"],
            compute=compute,
            link=link,
            rest=rest,
            loading=loading,
            loaded=loaded,
            step=loaded + log["total"],
            slopes=np.concatenate([*slopes((1 - input_share) * (1 - link_share), input_share), *others], 1),
            link_share=factors["link"],
            input_share=input_share,
            without_link=without_link,
            without_link_slopes=np.concatenate(slopes(1 - input_share_without_link, input_share_without_link), 1),
        )

    def widened(self, covariance: Array, priors: Priors) -> Array:
        """The covariance of the coefficients with more between those of the jobs' own contention, which few rows of a job tell."""
        is_own = (self.has_heavy_tails > 0) & (np.arange(len(self.names)) < self.num_without_link)
        return np.asarray(covariance * (1 + (priors.interval_contention - 1) * np.outer(is_own, is_own)))


@dataclass(frozen=True, kw_only=True)
class ClusterFit:
    """What `fit_cluster` found."""

    frame: Frame
    level: float  # mean of log step time, to which all logarithms of times refer
    coefficients: Array
    covariance: Array
    names: tuple[str, ...]


def make_design(queries: Sequence[StepQuery], frame: Frame, priors: Priors) -> tuple[Design, Rows]:
    """The columns of all terms for rows or queries."""
    rows = read_rows(queries, frame)
    columns: list[Columns] = [block for term in TERMS for block in term(rows, frame, priors)]
    columns.sort(key=lambda block: _PARTS.index(block.part))
    widths = [block.values.shape[1] for block in columns]

    def values(part: Part) -> Array:
        return np.concatenate([np.zeros((len(queries), 0)), *(block.values for block in columns if block.part == part)], 1)

    def spread(entries: Sequence[float]) -> Array:
        return np.repeat(np.array(entries, dtype=float), widths)

    return (
        Design(
            parts={part: values(part) for part in _PARTS},
            log_input=rows.log_input,
            is_multi=rows.places.is_multi,
            mean=spread([block.mean for block in columns]),
            sd=spread([block.sd for block in columns]),
            has_heavy_tails=spread([block.has_heavy_tails for block in columns]),
            names=tuple(block.name for block, width in zip(columns, widths, strict=True) for _ in range(width)),
        ),
        rows,
    )


def fit_cluster(
    rows: Sequence[StepRow],
    priors: Priors,
    *,
    means: Mapping[str, tuple[float, float]] | None = None,
    extra_sd: Sequence[float] | None = None,
) -> ClusterFit:
    """Maximum a posteriori coefficients by Gauss-Newton steps with Student's t for rows and for differences between jobs.

    Rows are believed before differences between jobs are doubted: the first steps take the noise as Gaussian.

    Args:
        rows: of one cluster.
        priors: see there.
        means: prior mean and standard deviation of coefficients by name, where something better is known.
        extra_sd: standard deviation of log step time to add to a row's noise, where the row was carried over from elsewhere.
    """
    frame = make_frame(rows, priors)
    kept = _thinned(rows)
    extra = np.zeros(len(kept)) if extra_sd is None else np.array(extra_sd)[kept]
    rows = [rows[i] for i in kept]
    design, _ = make_design(rows, frame, priors)
    log_step = np.log([row.step_time_s for row in rows])
    level = float(log_step.mean())
    mean, sd = design.mean.copy(), design.sd.copy()
    for i, name in enumerate(design.names):
        if means and name in means:
            mean[i], sd[i] = means[name]
    is_rehearsed = np.array([row.source == "rehearsed" for row in rows])
    noise_step = np.where(design.is_multi > 0, priors.noise_step, priors.noise_single)
    noise_step = np.sqrt(noise_step**2 + extra**2 + (is_rehearsed * priors.noise_rehearsed) ** 2)
    has_compute = (design.is_multi > 0) & np.array([row.sync_time_s is not None for row in rows])
    log_compute = np.log([compute_time_s(row) for row in rows])
    noise_compute = np.sqrt(priors.noise_compute**2 + extra[has_compute] ** 2)
    num_without_link = design.num_without_link

    coefficients = mean.copy()
    curvature = np.diag(1 / sd**2)
    for number in range(_PLAIN_STEPS + _ROBUST_STEPS):
        is_plain = number < _PLAIN_STEPS
        times = design.forward(coefficients, level)
        slopes, compute_slopes = times.slopes, times.without_link_slopes[has_compute]
        off_step, off_compute = log_step - times.step, (log_compute - times.without_link)[has_compute]
        weight = _weights(off_step, noise_step, is_plain, priors.noise_tail)
        weight_compute = _weights(off_compute, noise_compute, is_plain, priors.noise_tail)
        tails = (priors.job_tail + 1) / (priors.job_tail + ((coefficients - mean) / sd) ** 2)
        precision = np.where(design.has_heavy_tails > 0, tails, 1.0) / sd**2
        curvature = np.diag(precision) + _gram(slopes, weight)
        gradient = precision * (mean - coefficients) + slopes.T @ (weight * off_step)
        curvature[:num_without_link, :num_without_link] += _gram(compute_slopes, weight_compute)
        gradient[:num_without_link] += compute_slopes.T @ (weight_compute * off_compute)
        move = np.linalg.solve(curvature, gradient)
        if is_plain:
            move *= min(1.0, _LARGEST_MOVE / max(1e-12, float(np.abs(move[num_without_link:]).max(initial=0.0))))
        coefficients = coefficients + move
    return ClusterFit(frame=frame, level=level, coefficients=coefficients, covariance=np.linalg.inv(curvature), names=design.names)


def _gram(columns: Array, weight: Array) -> Array:
    """columns.T @ diag(weight) @ columns, of which BLAS computes one half."""
    from scipy.linalg.blas import dsyrk

    half = np.asarray(dsyrk(1.0, (columns * np.sqrt(weight)[:, None]).T))
    return np.asarray(half + np.triu(half, 1).T)


def _weights(off: Array, noise: Array, is_plain: bool, tail: float) -> Array:
    """1 / variance, less for outliers."""
    return np.asarray((1.0 if is_plain else (tail + 1) / (tail + (off / noise) ** 2)) / noise**2)


def _thinned(rows: Sequence[StepRow]) -> list[int]:
    """Indices of the rows to fit: all of them, but a few batches of jobs measured in many batches at many placements."""
    kept: list[int] = []
    for name in {row.model for row in rows}:
        mine = [i for i, row in enumerate(rows) if row.model == name]
        batches = sorted({rows[i].per_device_batch_size for i in mine})
        if len(batches) > _BATCHES_OF_FULL_JOB and len(mine) > 40 * _BATCHES_OF_FULL_JOB:
            chosen = {batches[round(place)] for place in np.linspace(0, len(batches) - 1, _BATCHES_OF_FULL_JOB)}
            mine = [i for i in mine if rows[i].per_device_batch_size in chosen or rows[i].num_gpus == 1]
        kept += mine
    return sorted(kept)
