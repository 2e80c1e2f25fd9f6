"""Python packages: what is installed, whether it loads and fits together."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType

from gpualloc import _native
from gpualloc.bench import nvml
from gpualloc.doctor.finding import Finding

_IMPORT_TIMEOUT_S = 120


def check_versions() -> Finding:
    """Python and gpualloc."""
    version = _version("gpualloc") or "(not installed)"
    return Finding(name="gpualloc", status="OK", seen=f"gpualloc {version}, Python {platform.python_version()}")


def check_torch() -> Finding:
    """Whether torch can be imported, and what it was built for."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        version = _version("torch")
        if version is None:
            return Finding(name="torch", status="FAIL", seen="not installed", advice="pip install torch")
        advice = f"install it again: pip install --force-reinstall torch=={version}"
        return Finding(name="torch", status="FAIL", seen=f"torch {version} does not import: {error}", advice=advice)
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    return Finding(name="torch", status="OK", seen=f"torch {torch.__version__}, built for {built_for}")


def check_extension() -> Finding:
    """Whether the compiled extension was built for this torch and loads."""
    build = _native.describe()
    if not build.available:
        return Finding(name="extension", status="WARN", seen=str(build.reason), advice="until then the slower Python hooks are used")
    built_for = f"CUDA {build.built_for_cuda} (sm_{', sm_'.join(build.cuda_archs)})" if build.built_for_cuda else "CPU only"
    seen = f"built for torch {build.built_for_torch}, {built_for}, {build.cpu_isa}"
    capability = min(nvml.read_compute_capabilities(), default=None)
    if build.built_for_cuda and capability is not None and not _runs_on(build.cuda_archs, capability):
        arch = "".join(map(str, capability))
        advice = f"build it for this GPU: GPUALLOC_CUDA_ARCHS={arch} pip install --force-reinstall --no-deps ."
        return Finding(name="extension", status="FAIL", seen=f"{seen}, and this machine has a GPU of sm_{arch}", advice=advice)
    if build.cuda_skipped:
        return Finding(name="extension", status="WARN", seen=seen, advice=f"the CUDA half was left out: {build.cuda_skipped}")
    return Finding(name="extension", status="OK", seen=seen)


def check_collectives() -> Finding:
    """Which of torch's collective libraries are there."""
    import torch
    import torch.distributed as dist

    backends = {"nccl": dist.is_available() and dist.is_nccl_available(), "gloo": dist.is_available() and dist.is_gloo_available()}
    seen = ", ".join(f"{name} {'available' if is_there else 'missing'}" for name, is_there in backends.items())
    needed = "nccl" if torch.version.cuda else "gloo"
    if backends[needed]:
        return Finding(name="collectives", status="OK", seen=seen)
    advice = f"install a torch with {needed}: without it more than one process cannot be measured"
    return Finding(name="collectives", status="FAIL", seen=seen, advice=advice)


def check_torchvision() -> Finding:
    """Whether torchvision, where there is one, imports: one built for another torch fails and takes transformers down with it."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding(name="torchvision", status="OK", seen="not installed; gpualloc's workloads do not need it")
    version = _version("torchvision") or "of unknown version"
    # In a process of its own: a failed import leaves operators half registered.
    command = [sys.executable, "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_IMPORT_TIMEOUT_S)
    if done.returncode == 0:
        return Finding(name="torchvision", status="OK", seen=f"torchvision {version} imports")
    cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding(
        name="torchvision",
        status="WARN",
        seen=f"torchvision {version} does not import beside torch {_version('torch')}: {cause}",
        advice="it was built for another torch and breaks transformers too; gpualloc's own workloads run. "
        "Remove it (pip uninstall torchvision), or install the one of this torch's version and CUDA, from where that torch came from",
    )


def _runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """PTX of each architecture goes along, so that newer GPUs run it: docs/install.md."""
    return any(int(arch) <= 10 * capability[0] + capability[1] for arch in archs if arch.isdecimal())


def imported_torch() -> ModuleType | None:
    """torch, or None where it does not import."""
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
