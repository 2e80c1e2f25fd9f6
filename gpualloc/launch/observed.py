"""What a job has shown, as a measurement: real training in the results store, where the next plan finds it."""

from __future__ import annotations

import shlex
import statistics
from pathlib import Path

from gpualloc.launch.job import Job
from gpualloc.launch.progress import Progress, read_environment, read_progress
from gpualloc.plan.records import Assignment
from gpualloc.records import JOB_DATA, BenchCase, Environment, Measurement
from gpualloc.store import ResultsStore

_MIN_WINDOWS = 3  # a job that trained for less has no rate


def record(store: Path, job: Job, folder: Path, *, fault: str | None) -> bool:
    """Adds a run with the job's rate, or with why it failed. Returns whether there was something to add.

    Only of jobs on one node, of a model that the plan names: a measurement does not tell how its ranks are spread.

    Args:
        fault: why the job failed; None: it ended well, or was stopped.

    Raises:
        StoreError: the store cannot be written.
    """
    progress, environment = read_progress(folder), read_environment(folder)
    if job.assignment is None or job.num_nodes > 1 or progress is None or environment is None:
        return False
    measurement = measure(job.assignment, progress, environment, fault=fault)
    if measurement is None:
        return False
    with ResultsStore(store) as results:
        run_id = results.begin_run(
            command=f"gpualloc run PLAN --only {shlex.quote(job.name)}", options={"job": job.name}, environment=environment
        )
        results.add(run_id, measurement)
        results.finish_run(run_id, "complete")
    return True


def measure(assignment: Assignment, progress: Progress, environment: Environment, *, fault: str | None) -> Measurement | None:
    """None where the plan does not name the model, or too few steps were timed."""
    times_s = progress.step_times_s
    if assignment.model is None or assignment.kind is None or (fault is None and len(times_s) < _MIN_WINDOWS):
        return None
    case = BenchCase(
        workload=assignment.kind,
        model=assignment.model,
        image_size_px=assignment.image_size_px,
        sequence_length=assignment.sequence_length,
        per_device_batch_size=progress.per_device_batch_size,
        precision=progress.precision,
        strategy=progress.strategy,
        hook=progress.hook,
        device=progress.device,
        world_size=assignment.num_gpus,
        ranks_per_gpu=1,
        data=JOB_DATA,
        num_warmup_steps=1,
        num_steps=1,
        num_repeats=max(1, len(times_s)),
        seed=0,
        tuning=assignment.tuning,
        grad_accum_steps=progress.grad_accum_steps,
    )
    if fault is not None:
        status = "oom" if "out of memory" in fault.lower() else "failed"
        return Measurement(case=case, status=status, reason=fault, environment=environment)
    step_time_s = statistics.median(times_s)
    samples_per_s = progress.samples_per_step / step_time_s
    return Measurement(
        case=case,
        status="ok",
        repeat_step_times_s=times_s,
        step_time_s=step_time_s,
        step_time_low_s=min(times_s),
        step_time_high_s=max(times_s),
        samples_per_s=samples_per_s,
        tokens_per_s=samples_per_s * assignment.sequence_length if assignment.sequence_length else None,
        loss_end=progress.loss,
        nonfinite_steps=progress.nonfinite_steps,
        environment=environment,
        notes=("seen while the job ran under gpualloc run, reading its data included",),
    )
