"""What a training script does that costs time on several GPUs, or trains another way than it seems: one check per function.

The script is read, never run. A check reports what it is sure of; a line that ends in `# gpualloc: ignore[RULE]` is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from gpualloc.doctor.finding import Finding
from gpualloc.doctor.script import averages, data, scaling, waits
from gpualloc.doctor.script.program import Program, read_program

__all__ = ["SCRIPT_CHECKS", "check_script"]

SCRIPT_CHECKS: dict[str, tuple[Callable[[Program], Iterable[Finding]], ...]] = {  # by rule
    "set-epoch": (data.check_set_epoch,),
    "sampler": (data.check_sampler,),
    "rescaling": (scaling.check_rescaling,),
    "accumulation": (scaling.check_accumulation,),
    "loss-average": (averages.check_summed_gradients, averages.check_summed_loss, averages.check_wrong_count, scaling.check_divided_twice),
    "unused-parameters": (waits.check_unused_parameters,),
    "sync-point": (waits.check_sync_points,),
    "data-parallel": (waits.check_data_parallel,),
    "pin-memory": (data.check_pin_memory,),
    "num-workers": (data.check_num_workers,),
}


def check_script(script: Path) -> list[Finding]:
    """What each rule found, in the order of lines; OK of a rule that found nothing.

    Raises:
        UsageError: the script cannot be read or is not Python.
    """
    program = read_program(script)
    findings = []
    for rule, checks in SCRIPT_CHECKS.items():
        found = {finding.place: finding for check in checks for finding in check(program)}  # one a line
        findings += sorted(found.values(), key=_line) or [Finding(name=rule, status="OK", seen="nothing found")]
    return findings


def _line(finding: Finding) -> tuple[str, int]:
    path, _, line = str(finding.place).rpartition(":")
    return path, int(line)
