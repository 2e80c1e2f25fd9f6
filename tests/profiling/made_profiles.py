"""Traces and profiles made by hand, whose figures are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpualloc.profiling.records import Costs, LoaderSetting, MachineSpeed, MemoryUse, RankProfile, StepTimes, Utilisation
from gpualloc.profiling.trace import STEP_MARK, Trace, parse_trace

ADAM_STEP = "Optimizer.step#Adam.step"
LOADER_NEXT = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"
ALL_REDUCE_KERNEL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def event(
    category: str, name: str, start_us: float, end_us: float, *, thread: object = 1, correlation: int | None = None
) -> dict[str, Any]:
    """One line of a Chrome trace."""
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": thread, "ts": start_us, "dur": end_us - start_us, "args": args}


def marked(*events: dict[str, Any], start_us: float = 0, end_us: float = 100, num_steps: int = 1) -> Trace:
    """A trace with these events, and marks around `num_steps` steps of equal length."""
    step_us = (end_us - start_us) / num_steps
    marks = [event("user_annotation", STEP_MARK, start_us + k * step_us, start_us + k * step_us) for k in range(num_steps + 1)]
    return parse_trace([*marks, *events, {"ph": "M", "name": "process_name"}, {"ph": "s", "cat": "ac2g", "name": "ac2g"}])


def made_times(**parts: float) -> StepTimes:
    """With everything 0 but what is given."""
    names = (
        "input_wait_s host_to_device_s kernels_s optimizer_s exposed_comm_s other_memory_s launch_gap_s hidden_comm_s matmul_s "
        "num_launches num_synchronisations"
    )
    return replace(StepTimes(**dict.fromkeys(names.split(), 0.0)), **parts)


def made_rank(times: StepTimes, **changes: Any) -> RankProfile:
    """One rank on an H200."""
    profile = RankProfile(
        rank=0,
        world_size=1,
        device="cuda",
        device_name="NVIDIA H200",
        num_steps=10,
        step_time_s=times.step_time_s,
        profiled_step_time_s=times.step_time_s * 1.05,
        times=times,
        gpu_busy=0.9,
        costs=Costs(flops={"bf16": 1e12}, moved_bytes=1e9, memory_share=0.2, roofline_s=0.5),
        speed=MachineSpeed(matmul_flops_per_s=700e12, matmul_format="bf16", copy_bytes_per_s=4e12),
        mfu=0.3,
        peak_source="NVIDIA H200 data sheet, 2024-11",
        utilisation=Utilisation(gpu=1.0, sm=0.8, tensor=0.5, dram=0.3, reason=None),
        memory=MemoryUse(high_water_bytes=20 * 2**30, total_bytes=140 * 2**30, headroom_bytes=115 * 2**30),
        loader=LoaderSetting(num_workers=0, pin_memory=True),
        num_cpus=16,
        trace_path="/traces/rank0.json.gz",
    )
    return replace(profile, **changes)


def made_cpu_rank(times: StepTimes, **changes: Any) -> RankProfile:
    """One rank on a CPU: no counters, no peak."""
    return made_rank(
        times,
        **{
            "device": "cpu",
            "device_name": "AMD EPYC",
            "gpu_busy": None,
            "mfu": None,
            "peak_source": None,
            "utilisation": None,
            "costs": Costs(flops={"fp32": 5e9}, moved_bytes=1e8, memory_share=0.2, roofline_s=0.5),
            "speed": MachineSpeed(matmul_flops_per_s=100e9, matmul_format="fp32", copy_bytes_per_s=20e9),
            **changes,
        },
    )
