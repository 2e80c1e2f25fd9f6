"""Measurements as two runs of `gpualloc bench` might leave them: varied, plausible, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpualloc.records import BenchCase, Environment, Measurement

GPU_ENVIRONMENT = Environment(
    device_name="NVIDIA H200",
    num_devices=4,
    driver_version="580.65.06",
    sm_clock_mhz=1980,
    mem_clock_mhz=3201,
    cpu_name="AMD EPYC 9654 96-Core Processor",
    num_cpus=96,
    os="Linux 6.8.0",
    python_version="3.11.7",
    torch_version="2.13.0+cu130",
    cuda_version="13.0",
    nccl_version="2.28.3",
    gpualloc_version="0.1.0",
    native="cuda",
    git_revision="3f2a91c",
)
CPU_ENVIRONMENT = replace(
    GPU_ENVIRONMENT,
    device_name="AMD EPYC 7763 64-Core Processor",
    num_devices=1,
    driver_version=None,
    sm_clock_mhz=None,
    mem_clock_mhz=None,
    cpu_name="AMD EPYC 7763 64-Core Processor",
    num_cpus=8,
    torch_version="2.13.0+cpu",
    cuda_version=None,
    nccl_version=None,
    native="cpu",
)


def image_case(**changes: Any) -> BenchCase:
    case = BenchCase(
        workload="image",
        model="mobilenet_v2",
        image_size_px=200,
        sequence_length=None,
        per_device_batch_size=64,
        precision="fp16",
        strategy="ddp",
        hook="none",
        device="cuda",
        world_size=2,
        ranks_per_gpu=1,
        data="synthetic",
        num_warmup_steps=10,
        num_steps=50,
        num_repeats=5,
        seed=0,
    )
    return replace(case, **changes)


def llm_case(**changes: Any) -> BenchCase:
    language = {"workload": "llm", "model": "gpt_small", "image_size_px": None, "sequence_length": 1024, "per_device_batch_size": 8}
    return image_case(**{**language, **changes})


def measured(case: BenchCase, step_time_s: float, *, spread: float = 0.02, exposed_comm_s: float = 0.0, **changes: Any) -> Measurement:
    """An "ok" measurement whose five repeats lie `spread` apart."""
    repeats = tuple(step_time_s * (1 + spread * offset) for offset in (-0.5, -0.2, 0.0, 0.3, 0.5))
    samples_per_s = case.per_device_batch_size * case.world_size / step_time_s
    is_alone = case.strategy == "single"
    figures = {
        "backend": None if is_alone else "nccl" if case.device == "cuda" else "gloo",
        "compute_time_s": step_time_s - exposed_comm_s,
        "exposed_comm_s": None if is_alone else exposed_comm_s,
        "samples_per_s": samples_per_s,
        "tokens_per_s": samples_per_s * case.sequence_length if case.sequence_length else None,
        "peak_memory_bytes": 7_312_556_032,
        "loss_start": 2.3026,
        "loss_end": 1.8714,
        "wire_bytes_per_step": 0 if is_alone else 7_000_000 if "16" in case.hook else 14_000_000,
        "nonfinite_steps": 0,
        "environment": GPU_ENVIRONMENT if case.device == "cuda" else CPU_ENVIRONMENT,
    }
    return Measurement(
        case=case,
        status="ok",
        repeat_step_times_s=repeats,
        step_time_s=step_time_s,
        step_time_low_s=repeats[0],
        step_time_high_s=repeats[-1],
        **{**figures, **changes},
    )


def gpu_run() -> list[Measurement]:
    """An image and a language group on GPUs; with a noisy row, an out-of-memory, a failed and a skipped one."""
    image_single, llm_single = image_case(strategy="single", world_size=1), llm_case(strategy="single", world_size=1)
    return [
        measured(image_case(), 0.02548, exposed_comm_s=0.00291),
        measured(image_single, 0.02244),
        measured(image_case(hook="torch_fp16"), 0.02391, exposed_comm_s=0.00132),
        measured(image_case(hook="gpualloc_fp16"), 0.02342, exposed_comm_s=0.00081, spread=0.087),
        measured(image_case(world_size=4), 0.02911, exposed_comm_s=0.00654),
        Measurement(
            case=image_case(world_size=4, hook="torch_fp16"),
            status="failed",
            reason="rank 3 raised RuntimeError: NCCL communicator was aborted; see its log and try the case alone with --num-gpus 4",
            backend="nccl",
            environment=GPU_ENVIRONMENT,
        ),
        measured(image_case(world_size=4, hook="gpualloc_fp16"), 0.02457, exposed_comm_s=0.00196),
        measured(llm_single, 0.18311, loss_start=10.9713, loss_end=9.1038, peak_memory_bytes=61_203_283_968),
        measured(llm_case(), 0.20124, exposed_comm_s=0.01711, loss_start=10.9713, loss_end=float("nan"), wire_bytes_per_step=497_760_000),
        Measurement(
            case=llm_case(world_size=4),
            status="oom",
            reason="rank 1 ran out of memory: 2.50 GiB asked, 1.98 GiB free of 139.80 GiB",
            backend="nccl",
            environment=GPU_ENVIRONMENT,
        ),
        Measurement(case=llm_case(world_size=8), status="skipped", reason="8 ranks asked, 4 GPUs present", environment=GPU_ENVIRONMENT),
    ]


def cpu_run() -> list[Measurement]:
    """One group on a CPU."""
    case = image_case(device="cpu", precision="fp32", image_size_px=100, per_device_batch_size=16)
    return [
        measured(replace(case, strategy="single", world_size=1), 0.41275, peak_memory_bytes=812_556_032),
        measured(case, 0.75528, exposed_comm_s=0.1203, peak_memory_bytes=912_556_032),
        measured(replace(case, hook="gpualloc_fp16"), 0.71204, exposed_comm_s=0.0811, spread=0.064, peak_memory_bytes=908_556_032),
    ]
