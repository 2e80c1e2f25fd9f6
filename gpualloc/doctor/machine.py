"""GPUs and their driver, cores, shared memory."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

from gpualloc.bench import environment, nvml
from gpualloc.doctor.finding import Finding
from gpualloc.doctor.software import imported_torch

# NCCL and data loaders share buffers there, for which Docker's default of 64 MiB is too small. The NCCL user guide asks for
# --shm-size=1g: "Runtime and MPI issues", section "Shared memory".
MIN_SHARED_MEMORY_BYTES = 2**30
_CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": 2 cores; "max 100000": no limit


def check_gpus() -> Finding:
    """GPUs, and whether the driver runs the CUDA that torch was built for."""
    driver = nvml.read_driver()
    if driver is None or driver.num_gpus == 0:
        advice = "the CPU path runs; to measure GPUs install NVIDIA's driver, or start the container with its GPUs (docker run --gpus all)"
        return Finding(name="GPUs", status="WARN", seen=f"none: {_why_no_driver()}", advice=advice)
    names = ", ".join(nvml.read_gpu_names()) or "no GPU visible to this process"
    cuda = ".".join(map(str, driver.cuda_version))
    seen = f"{names}; driver {driver.version} runs CUDA up to {cuda}"
    torch = imported_torch()
    if torch is None:
        return Finding(name="GPUs", status="WARN", seen=seen, advice="torch does not import, so it cannot use them")
    # Minor versions of one major version of CUDA run on each other's drivers: CUDA Compatibility guide, "Minor version compatibility".
    if torch.version.cuda is not None and driver.cuda_version[0] < int(torch.version.cuda.split(".")[0]):
        advice = f"update the driver, or install a torch built for CUDA {driver.cuda_version[0]}; with --device cpu gpualloc bench runs"
        return Finding(name="GPUs", status="FAIL", seen=f"{seen}, torch {torch.__version__} needs CUDA {torch.version.cuda}", advice=advice)
    if environment.count_gpus() == 0:
        return Finding(name="GPUs", status="WARN", seen=seen, advice=f"the CPU path runs: {environment.why_no_gpu()}")
    lacking = _architecture_torch_lacks(torch)
    if lacking is not None:
        advice = f"install a torch built for {lacking}: kernels fail with 'no kernel image is available'"
        return Finding(name="GPUs", status="FAIL", seen=f"{seen}, torch {torch.__version__} has no kernels for {lacking}", advice=advice)
    return Finding(name="GPUs", status="OK", seen=seen)


def check_cpu_cores() -> Finding:
    """Cores this process may use: by affinity and by the container's limit."""
    present, allowed, limit = os.cpu_count() or 1, len(os.sched_getaffinity(0)), _cgroup_core_limit()
    seen = f"{allowed} of {present} usable" + (f", limited to {limit:g} by the container" if limit else "")
    if min(allowed, limit or math.inf) < 2:
        return Finding(name="CPU cores", status="WARN", seen=seen, advice="the ranks share one core: CPU figures say nothing of scaling")
    return Finding(name="CPU cores", status="OK", seen=seen)


def check_shared_memory() -> Finding:
    """Room in /dev/shm, through which processes on one machine exchange data."""
    usage = shutil.disk_usage("/dev/shm")
    seen = f"/dev/shm {usage.total / 2**30:.1f} GiB, {usage.free / 2**30:.1f} GiB free"
    if usage.free < MIN_SHARED_MEMORY_BYTES:
        advice = f"below {MIN_SHARED_MEMORY_BYTES / 2**30:g} GiB processes may die with a bus error; in Docker: --shm-size=8g or --ipc=host"
        return Finding(name="shared memory", status="WARN", seen=seen, advice=advice)
    return Finding(name="shared memory", status="OK", seen=seen)


def _architecture_torch_lacks(torch: ModuleType) -> str | None:
    """The oldest GPU's architecture if torch was built for none that it runs: the same major version and no newer, or PTX."""
    capability, archs = min(nvml.read_compute_capabilities(), default=None), torch.cuda.get_arch_list()
    if capability is None or not archs:
        return None
    for arch in archs:
        kind, _, digits = arch.partition("_")
        number = int(re.sub(r"\D", "", digits) or 0)
        major, minor = divmod(number, 10)
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return None
    return f"sm_{capability[0]}{capability[1]}"


def _why_no_driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    except pynvml.NVMLError as error:
        return f"NVML says: {error}"
    pynvml.nvmlShutdown()
    return "the driver answers and reports no GPU"


def _cgroup_core_limit() -> float | None:
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
