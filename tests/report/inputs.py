"""Inputs of reports: a study with known answers, hostile names, and many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpualloc.profiling.records import PARTS, MemoryUse, Profile, RankProfile, StepTimes, Verdict
from gpualloc.profiling.trace import STEP_MARK, Trace, parse_trace
from gpualloc.records import Measurement
from gpualloc.report import MeasuredRun, ReportInputs, Study
from gpualloc.watching.waste import Price
from tests.findings.studied_runs import details_run, study_run
from tests.store.sample_measurements import GPU_ENVIRONMENT, cpu_run, gpu_run, image_case, llm_case, measured

HOSTILE = "<script>window.stolen=1</script>\"'&<img src=x onerror=window.stolen=1>"


def inputs_of(rows: Sequence[Measurement], **more: Any) -> ReportInputs:
    """A report of one run on one machine."""
    run = MeasuredRun(
        name="7",
        started_at_utc="2026-11-26T08:00:00+00:00",
        status="complete",
        command="gpualloc bench --gpus 1..4",
        measurements=tuple(rows),
    )
    environment = rows[0].environment if rows else GPU_ENVIRONMENT
    fields = {"made_at_utc": "2026-11-26 09:00", "command": "gpualloc report", "price": Price(amount_per_hour=2.5, currency="EUR")}
    return ReportInputs(studies=(Study(environment=environment, runs=(run,)),), **{**fields, **more})


def study_inputs(**more: Any) -> ReportInputs:
    """Image sizes 100 to 500 px: four GPUs pay from 298 px on; with details, a language model and rows that failed."""
    rows = [*study_run(), *details_run(), *(row for row in gpu_run() if row.case.workload == "llm" or row.status == "failed")]
    return inputs_of(rows, **more)


def rich_inputs(**more: Any) -> ReportInputs:
    """A study with a profile and a trace."""
    return study_inputs(profile=made_profile(), trace=made_trace(), **more)


def hostile_inputs() -> ReportInputs:
    """Names with markup, quotes, broken UTF-8 and braces wherever a name can be."""
    name = HOSTILE + "\udcff{0}{x}</title></style>"
    rows = []
    for base in study_run()[:20]:
        case = replace(base.case, model=name, data="/data/" + name)
        rows.append(replace(base, case=case, notes=(name,), environment=replace(GPU_ENVIRONMENT, device_name=name)))
    rows.append(Measurement(case=image_case(model=name), status="failed", reason=name))
    profile = made_profile()
    profile = replace(profile, subject=name, verdict=replace(profile.verdict, next_step=name, evidence=(name,)))
    run = MeasuredRun(name=name, started_at_utc="2026", status=name, command=name, measurements=tuple(rows))
    study = Study(environment=replace(GPU_ENVIRONMENT, device_name=name), runs=(run,))
    price = Price(amount_per_hour=1.0, currency="<b>EU")
    return ReportInputs(studies=(study,), made_at_utc="2026", command=name, price=price, profile=profile, problems=(name,))


def many_rows(count: int) -> list[Measurement]:
    """So many different cases."""
    rows = []
    for index in range(count):
        case = image_case(
            model=f"net_{index % 20}",
            image_size_px=32 * (1 + index // 20 % 25),
            precision=("fp32", "bf16")[index // 500 % 2],
            world_size=(1, 2, 4, 8)[index // 1000 % 4],
            strategy="single" if index // 1000 % 4 == 0 else "ddp",
            per_device_batch_size=8 * (1 + index // 4000),
        )
        rows.append(measured(case, 0.01 + index * 1e-6))
    return rows


def made_profile() -> Profile:
    """Two ranks of a second each."""
    times = StepTimes(
        **dict(zip(PARTS, (0.05, 0.02, 0.55, 0.08, 0.2, 0.03, 0.07), strict=True)),
        hidden_comm_s=0.1,
        matmul_s=0.4,
        num_launches=900.0,
        num_synchronisations=3.0,
    )
    ranks = tuple(
        RankProfile(
            rank=rank,
            world_size=2,
            device="cuda",
            device_name="NVIDIA H200",
            num_steps=10,
            step_time_s=1.0,
            profiled_step_time_s=1.02,
            times=times,
            gpu_busy=0.8,
            costs=None,
            speed=None,
            mfu=None,
            peak_source=None,
            utilisation=None,
            memory=MemoryUse(high_water_bytes=2**33, total_bytes=2**37, headroom_bytes=2**36),
            loader=None,
            num_cpus=8,
            trace_path="/nowhere/rank0.json.gz",
        )
        for rank in range(2)
    )
    verdict = Verdict(
        kind="communication-bound",
        share=0.2,
        sentence="communication-bound",
        evidence=("communication-bound", "200 ms of 1000"),
        next_step="try --hook gpualloc_auto",
        shares={},
    )
    return Profile(subject="resnet50 224px bf16 ddp/none x2, 64 per rank, cuda", ranks=ranks, verdict=verdict)


def made_trace() -> Trace:
    """One step of 100 ms on a GPU: forward 0 to 30, backward 30 to 80, buckets at 50 to 70 and 75 to 95, optimizer 95 to 100."""

    def event(name: str, category: str, start_ms: float, length_ms: float, thread: int, correlation: int | None = None) -> dict[str, Any]:
        arguments = {} if correlation is None else {"correlation": correlation}
        return {
            "ph": "X",
            "cat": category,
            "name": name,
            "ts": start_ms * 1e3,
            "dur": length_ms * 1e3,
            "pid": 1,
            "tid": thread,
            "args": arguments,
        }

    spans = [("forward", 0, 30, 5, 1), ("backward", 30, 50, 20, 2), ("adam", 95, 5, 90, 3)]
    raw = [event(STEP_MARK, "user_annotation", start_ms, 0.0, 1) for start_ms in (0, 100)]
    raw.append(event("autograd::engine::evaluate_function: MmBackward0", "cpu_op", 15, 30, 2))
    raw.append(event("Optimizer.step#Adam.step", "user_annotation", 85, 10, 1))
    for name, start_ms, length_ms, launched_ms, correlation in spans:
        raw.append(event("cudaLaunchKernel", "cuda_runtime", launched_ms, 0.01, 1, correlation))
        raw.append(event(f"{name}_kernel", "kernel", start_ms, length_ms, 7, correlation))
    for start_ms, length_ms in ((50, 20), (75, 20)):
        raw.append(event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", "kernel", start_ms, length_ms, 8))
    return parse_trace(raw)


__all__ = ["cpu_run", "hostile_inputs", "inputs_of", "llm_case", "many_rows", "rich_inputs", "study_inputs"]
