"""What works on this machine and what does not: one check per function, each of which returns a `Finding`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpualloc.doctor import machine, software, storage
from gpualloc.doctor.finding import Finding, Status

__all__ = ["CHECKS", "Finding", "Status", "run_checks"]

CHECKS: tuple[Callable[[], Finding], ...] = (
    software.check_versions,
    software.check_torch,
    software.check_extension,
    machine.check_gpus,
    software.check_collectives,
    software.check_torchvision,
    machine.check_cpu_cores,
    machine.check_shared_memory,
    storage.check_results_store,
)


def run_checks(checks: Sequence[Callable[[], Finding]] = CHECKS) -> list[Finding]:
    """Every check's finding; a check that breaks is itself a warning and keeps no other from running."""
    return [_run(check) for check in checks]


def _run(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Finding(name=name, status="WARN", seen=f"the check broke: {type(error).__name__}: {error}", advice="report this as a bug")
