"""Where a measurement is made: the device to use and the record of the machine.

Nothing here creates a CUDA context, so the GPU's memory is left to the workers.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import gpualloc
from gpualloc.bench import nvml
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.records import Environment

DEVICES = ("cuda", "cpu")


def choose_device(requested: str | None = None) -> str:
    """ "cuda" or "cpu": the one asked for, else "cuda" where torch can use a GPU.

    Raises:
        UsageError: no such device, or a GPU is asked for and torch sees none.
        GpuallocError: the driver is too old for torch's CUDA.
    """
    if requested not in (None, *DEVICES):
        raise UsageError(f"--device {requested!r} is unknown; choose one of {', '.join(DEVICES)}")
    if requested == "cpu":
        return "cpu"
    _refuse_old_driver()
    if count_gpus() > 0:
        return "cuda"
    if requested == "cuda":
        raise UsageError(f"--device cuda: {why_no_gpu()}; use --device cpu")
    return "cpu"


def count_gpus() -> int:
    """GPUs torch can use, in this process's CUDA_VISIBLE_DEVICES."""
    import torch

    return torch.cuda.device_count() if torch.version.cuda is not None else 0


def read_device_memory_bytes(device: str) -> int | None:
    """Of the smallest visible GPU, or what the machine has left for "cpu"; None where it cannot be read."""
    if device == "cuda":
        return min(nvml.read_memory_bytes(), default=None)
    import psutil

    return int(psutil.virtual_memory().available)


def why_no_gpu() -> str:
    """One clause on why torch sees no GPU."""
    import torch

    driver = nvml.read_driver()
    if driver is None or driver.num_gpus == 0:
        return "this machine has no NVIDIA GPU or no driver for it (NVML does not answer)"
    if torch.version.cuda is None:
        return f"this machine has {driver.num_gpus} GPUs but torch {torch.__version__} is a CPU build"
    return f"torch sees none of this machine's {driver.num_gpus} GPUs with CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}"


def compute_capability() -> tuple[int, int] | None:
    """The lowest compute capability among the visible GPUs, or None where there is none."""
    found = nvml.read_compute_capabilities()
    if not found and count_gpus() > 0:  # no NVML: ask CUDA itself
        import torch

        found = [torch.cuda.get_device_capability(index) for index in range(count_gpus())]
    return min(found, default=None)


def detect_environment(device: str | None = None) -> Environment:
    """The machine as a record, for measurements on `device` (default: `choose_device()`).

    Raises:
        UsageError, GpuallocError: as `choose_device`.
    """
    import torch

    device = choose_device(device)
    cpu_name = read_cpu_name()
    on_gpu = device == "cuda"
    driver = nvml.read_driver() if on_gpu else None
    gpu_names = " + ".join(dict.fromkeys(nvml.read_gpu_names())) or "unknown GPU"  # unlike GPUs: each name once
    return Environment(
        device_name=gpu_names if on_gpu else cpu_name,
        num_devices=count_gpus() if on_gpu else 1,
        driver_version=driver.version if driver else None,
        sm_clock_mhz=None,
        mem_clock_mhz=None,
        cpu_name=cpu_name,
        num_cpus=len(os.sched_getaffinity(0)),
        os=platform.platform(),
        python_version=platform.python_version(),
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda,
        nccl_version=_read_nccl_version() if on_gpu else None,
        gpualloc_version=gpualloc.__version__,
        native=_describe_native(),
        git_revision=_read_git_revision(),
    )


def _refuse_old_driver() -> None:
    import torch

    driver = nvml.read_driver()
    if driver is None or driver.num_gpus == 0 or torch.version.cuda is None:
        return
    built_for_major = int(torch.version.cuda.split(".")[0])
    if driver.cuda_version[0] < built_for_major:  # a driver runs all minor versions of its major one
        seen = ".".join(map(str, driver.cuda_version))
        raise GpuallocError(
            f"the GPU driver is too old for this torch: driver {driver.version} runs CUDA up to {seen}, torch {torch.__version__} needs "
            f"CUDA {torch.version.cuda}; update the driver, install a torch built for CUDA {driver.cuda_version[0]}, or use --device cpu"
        )


def read_cpu_name() -> str:
    """The CPU's model, or the kind of machine where none is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read_nccl_version() -> str | None:
    import torch

    if not torch.distributed.is_nccl_available():
        return None
    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


def _describe_native() -> str:
    from gpualloc import _native

    native = _native.describe()
    if not native.available:
        return f"unavailable: {native.reason}"
    return "cuda" if native.cuda_archs else "cpu"


def _read_git_revision() -> str | None:
    revision = _run_git("rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    return f"{revision}-dirty" if _run_git("status", "--porcelain", "--untracked-files=no") else revision


def _run_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
