"""What is believed of a cluster before it is measured: standard deviations of natural logarithms, unless said otherwise.

Plain values on the flat of the optimum over three measured clusters; `benchmarks/choose_forecast_priors.py` leaves one out in turn.
Differences between jobs have heavy tails: most jobs of a cluster behave alike, and a few do not at all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Priors:
    """Each group belongs to the term of `gpualloc.scaling.terms` that is named above it."""

    # launch_floor
    floor_ratio: float = 0.5  # from what a line over the batches says
    # arithmetic
    batch_slope: float = 0.15  # change per doubling of the batch, from being in proportion to it
    size_slope: float = 0.7  # per doubling of pixels or tokens
    precision_shift: float = 0.5
    # single_gpu_curve
    batch_bend: float = 0.25  # smooth departure from floor and arithmetic
    batch_jump: float = 0.15  # of one batch size from the smooth curve
    # contention
    shared_contention: float = 0.4  # step from one GPU to several, and per doubling of the GPUs of a node, in all jobs
    contention: float = 0.04  # departures from that: of one job, over nodes, and with the batch
    # input_time
    input_rate: float = 0.15  # the loaders' rate in training, where they share cores with it, from that measured alone
    # link_time
    link_level: float = 2.0
    link_slope: float = 0.6  # per doubling of nodes or of the GPUs of a node
    link_pair: float = 0.5
    link_bend: float = 0.3
    link_placement: float = 0.12  # of one placement from the smooth curve
    # gradient_load
    job_link: float = 0.2  # departure of one job from the others: in all, inside or between nodes, per doubling, smooth bend
    told_sd: float = 0.05  # of the slopes on what is told of a job's gradients: with 5 or 10 jobs a cluster hardly tells them
    from_sync: float = 0.1  # slope on the synchronisation of a single GPU with itself; the others are 1
    launch_bound_gb_per_s: float = 2.0  # gradients that pass faster are half a matter of bytes and half of launches and waiting
    fixed_share_floor: float = 0.1  # the part that does not grow is at least this share of the shortest step
    # overlap
    overlap_log_gamma: float = 1.0
    overlap_sd: float = 0.25
    job_overlap: float = 0.15
    # rehearsal_bias
    rehearsal_bias: float = 0.06  # median error of rehearsed steps against real ones on five links: docs/rehearse.md
    # noise of one row
    noise_step: float = 0.06
    noise_single: float = 0.03
    noise_compute: float = 0.06
    noise_rehearsed: float = 0.06
    noise_tail: float = 4.0  # degrees of freedom of Student's t
    job_tail: float = 1.0  # the same of differences between jobs
    # residuals
    residual_smooth: float = 0.10
    residual_placement: float = 0.05
    residual_noise: float = 0.04
    residual_length: float = 4.0  # doublings of nodes or GPUs
    residual_batch_length: float = 2.0  # doublings of the batch
    # intervals
    interval_quantile: float = 1.645  # 90 % of a normal distribution
    interval_equation: float = 0.2  # times the variance of the coefficients
    interval_unlinked: float = 0.7  # the same for a job that was measured on single GPUs only
    interval_contention: float = 10.0  # of it, times that of the jobs' own contention: for Student's t of `job_tail` at 90 % it is 14.7
    interval_residual: float = 0.35  # times that of the residual process
    interval_noise: float = 0.045
