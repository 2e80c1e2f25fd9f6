"""What works on this machine and what does not: one check per function, each of which returns a `Finding`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from gpualloc.doctor import communication, gpu_health, limits, machine, measured, software, storage, topology
from gpualloc.doctor.finding import Finding, Status
from gpualloc.doctor.probe_server import ProbeServer

__all__ = ["CHECKS", "MEASURED_CHECKS", "Finding", "Status", "fix", "fixable_checks", "run_checks"]

Check = Callable[[], Finding | None]  # None: nothing here that it could be asked of

CHECKS: tuple[Check, ...] = (
    software.check_versions,
    software.check_torch,
    software.check_extension,
    software.check_collectives,
    software.check_torchvision,
    machine.check_gpus,
    gpu_health.check_gpu_memory,
    gpu_health.check_gpu_faults,
    gpu_health.check_gpu_clocks,
    gpu_health.check_gpu_settings,
    topology.check_gpu_links,
    topology.check_pcie,
    topology.check_numa,
    machine.check_cpu_cores,
    limits.check_cpu_clocks,
    limits.check_container_limits,
    machine.check_shared_memory,
    limits.check_limits,
    communication.check_nccl_environment,
    communication.check_network_interfaces,
    communication.check_timeouts,
    limits.check_schedulers,
    storage.check_results_store,
    storage.check_watch_store,
    storage.check_state_file,
    storage.check_leftovers,
)
FIXES: dict[Check, Callable[[], str]] = {storage.check_leftovers: storage.delete_leftovers}  # only what nobody can miss
MEASURED_CHECKS: tuple[Callable[[ProbeServer], Finding | None], ...] = (
    measured.check_copies,
    measured.check_loader,
    measured.check_gloo,
    measured.check_nccl,
)


def run_checks(
    checks: Sequence[Check] = CHECKS,
    measured_checks: Sequence[Callable[[ProbeServer], Finding | None]] = (),
    tell: Callable[[str], None] = lambda name: None,
) -> list[Finding]:
    """Every check's finding; a check that breaks is itself a warning and keeps no other from running.

    Args:
        measured_checks: what runs after the others, with processes that are started now.
        tell: hears the name of each check before it runs.
    """
    with ExitStack() as started:
        named = [(_name(check), check) for check in checks]
        if measured_checks:
            server = started.enter_context(ProbeServer())
            named += [(_name(check), partial(check, server)) for check in measured_checks]
        findings = []
        for name, check in named:
            tell(name)
            findings.append(_run(name, check))
    return [finding for finding in findings if finding is not None]


def fix(findings: Sequence[Finding]) -> Iterator[tuple[Finding, str]]:
    """Does what the findings say is safe; tells each with what was done."""
    for check in fixable_checks(findings):
        yield next(finding for finding in findings if finding.name == _name(check)), FIXES[check]()


def fixable_checks(findings: Sequence[Finding]) -> list[Check]:
    """Those whose finding has a fix."""
    fixable = {finding.name for finding in findings if finding.fix is not None}
    return [check for check in FIXES if _name(check) in fixable]


def _name(check: Callable[..., Finding | None]) -> str:
    return check.__name__.removeprefix("check_").replace("_", " ")


def _run(name: str, check: Check) -> Finding | None:
    try:
        return check()
    except Exception as error:
        return Finding(name=name, status="WARN", seen=f"the check broke: {type(error).__name__}: {error}", advice="report this as a bug")
