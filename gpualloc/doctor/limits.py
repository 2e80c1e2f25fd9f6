"""What the system, the container and their settings allow: memory, open files, locked memory, processes, clocks, schedulers."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
from pathlib import Path

import psutil

from gpualloc.doctor.finding import Finding, judged

# A data loader's worker passes each tensor as an open file; PyTorch, "Multiprocessing package", "File descriptor - file_descriptor".
MIN_OPEN_FILES = 4096
MIN_PROCESSES = 4096  # threads count: 8 ranks x 8 workers x the threads of each
MIN_MEMORY_BYTES = 4 * 2**30  # what one rank and two workers of a small job take
_CGROUP = Path("/sys/fs/cgroup")
_INFINIBAND = Path("/sys/class/infiniband")
_GOVERNORS = Path("/sys/devices/system/cpu")
_SLURM_TIMEOUT_S = 3.0


def check_container_limits() -> Finding:
    """Memory this process may use, by the container's limit, and whether it was ever short of it."""
    total = int(psutil.virtual_memory().total)
    limit, used = _read_memory_limit()
    where = "by the container" if limit is not None and limit < total else ""
    allowed = min(limit or total, total)
    seen = f"{allowed / 2**30:.1f} GiB{f' of {total / 2**30:.1f} GiB, limited {where}' if where else ''}"
    warnings = []
    if allowed < MIN_MEMORY_BYTES:
        warnings.append(f"less than {MIN_MEMORY_BYTES / 2**30:g} GiB")
    if where and used is not None and allowed - used < allowed / 10:
        warnings.append(f"{used / allowed:.0%} of it is in use")
    throttled = _throttled_share()
    if throttled is not None and throttled > 0.05:
        warnings.append(f"the container's CPU limit held it back in {throttled:.0%} of its periods")
    advice = (
        "give the container more (docker run --memory --cpus, the pod's limits, Slurm's --mem --cpus-per-task), or use fewer loader workers"
    )
    return judged("container limits", seen, warnings=warnings, advice=advice)


def check_limits() -> Finding:
    """ulimits: open files, processes, and locked memory where there is InfiniBand."""
    warnings, seen, advice = [], [], []
    for noun, kind, least, flag in (
        ("open files", resource.RLIMIT_NOFILE, MIN_OPEN_FILES, "-n"),
        ("processes", resource.RLIMIT_NPROC, MIN_PROCESSES, "-u"),
    ):
        soft, hard = (math.inf if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(kind))
        seen.append(f"{soft:,.0f} {noun}" if soft < math.inf else f"any number of {noun}")
        if soft < least:
            warnings.append(f"only {soft:,.0f} {noun}")
            advice.append(f"ulimit {flag} {least}" + (" (as root, in /etc/security/limits.conf)" if hard < least else ""))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()) and locked != resource.RLIM_INFINITY:
        warnings.append(f"{locked / 2**20:g} MiB of locked memory, which InfiniBand needs without limit")
        advice.append("ulimit -l unlimited; docker run --ulimit memlock=-1; Slurm: PropagateResourceLimitsExcept=MEMLOCK")
    return judged("ulimits", ", ".join(seen), warnings=warnings, advice="; ".join(advice))


def check_cpu_clocks() -> Finding | None:
    """Whether the cores are set to save power; None where the kernel does not tell, as in most virtual machines."""
    governors = sorted({_read(path) for path in _GOVERNORS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""})
    if not governors:
        return None
    driver = _read(_GOVERNORS / "cpu0/cpufreq/scaling_driver")
    # Under intel_pstate and amd_pstate "powersave" follows the load: kernel.org, "intel_pstate CPU Performance Scaling Driver".
    is_slow = "powersave" in governors and not driver.startswith(("intel_pstate", "amd-pstate", "amd_pstate"))
    warnings = ["the governor powersave keeps the cores at their lowest clock"] if is_slow else []
    return judged(
        "CPU clocks", f"governor {', '.join(governors)}", warnings=warnings, advice="as root: cpupower frequency-set -g performance"
    )


def check_schedulers() -> Finding:
    """Slurm and Ray: there or not, and whether this process is inside an allocation."""
    seen, warnings = [], []
    has_slurm = shutil.which("sbatch") is not None
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        granted = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS") or "no"
        seen.append(f"inside Slurm job {job} with {granted} GPUs on this node")
        if "SLURM_NTASKS" in os.environ and "MASTER_ADDR" not in os.environ and int(os.environ.get("SLURM_NNODES", "1")) > 1:
            warnings.append("several nodes and no MASTER_ADDR")
    else:
        partitions = _read_partitions() if has_slurm else None
        seen.append(
            f"Slurm with partitions {', '.join(partitions[:4])}" if partitions else "no Slurm" if not has_slurm else "Slurm's commands"
        )
        if has_slurm and not partitions:
            warnings.append("sbatch is there, and sinfo tells of no partition")
    address = os.environ.get("RAY_ADDRESS")
    has_ray = _has_module("ray")
    seen.append(f"Ray {'installed' if has_ray else 'not installed'}" + (f", RAY_ADDRESS={address}" if address else ""))
    if address and not has_ray:
        warnings.append("RAY_ADDRESS is set but Ray is not installed")
    advice = "start slurmctld or ask its operator (scontrol ping); for several nodes export MASTER_ADDR of the first one; unset RAY_ADDRESS"
    return judged("schedulers", ", ".join(seen), warnings=warnings, advice=advice)


def _read_partitions() -> list[str] | None:
    try:
        done = subprocess.run(["sinfo", "--noheader", "--format=%P"], capture_output=True, text=True, timeout=_SLURM_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split() if done.returncode == 0 else None


def _has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _read_memory_limit() -> tuple[int | None, int | None]:
    """(limit, in use without what the kernel can drop), bytes, by cgroup v2, else v1; None where there is none."""
    for limit_file, used_file, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _read(_CGROUP / limit_file), _read(_CGROUP / used_file)
        if limit.isdecimal():
            stat = dict(
                line.split()[:2] for line in _read((_CGROUP / limit_file).parent / "memory.stat").splitlines() if len(line.split()) == 2
            )
            return int(limit), max(0, int(used) - int(stat.get(dropped, 0))) if used.isdecimal() else None
    return None, None


def _throttled_share() -> float | None:
    """Of the periods in which the container's CPU limit counted."""
    stat = dict(line.split()[:2] for line in _read(_CGROUP / "cpu.stat").splitlines() if len(line.split()) == 2)
    try:
        periods, throttled = int(stat["nr_periods"]), int(stat["nr_throttled"])
    except (KeyError, ValueError):
        return None
    return throttled / periods if periods > 100 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
