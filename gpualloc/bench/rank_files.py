"""What a rank and the command that started it say to each other: small JSON files in the case's folder, written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpualloc.records import BenchCase
from gpualloc.whole_files import write_whole

MESSAGE_MAX_CHARS = 300
DEFAULT_CI_TARGET = 0.05  # half of the 95 % confidence interval, as a fraction of the step time, at which repeats end


@dataclass(frozen=True, kw_only=True)
class CaseOrder:
    """What the ranks are told."""

    case: BenchCase
    timeout_s: float  # for one collective
    ci_target: float = DEFAULT_CI_TARGET


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What a rank measured. All ranks time the same number of repeats and steps."""

    step_times_s: list[list[float]]  # [repeats][steps]
    compute_times_s: list[list[float]]  # [repeats][steps] under no_sync; empty lists where there is none
    loss_start: float | None  # this rank's, first timed step; None where another rank has it
    loss_end: float | None  # last timed step of the last repeat asked for
    peak_memory_bytes: int
    wire_bytes_per_step: int | None
    nonfinite_steps: int | None
    parameter_checksum: str  # equal on all ranks whose parameters are bit for bit the same
    shard: int = 0  # ranks with the same number should have the same parameters
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    disturbances: list[list[str]] = field(default_factory=list)  # [repeats], what this rank saw; empty where nobody looked
    notes: list[str] = field(default_factory=list)
    input_samples_per_s: float | None = None  # its part of the machine's, as in gpualloc.records.Measurement


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """Why a rank ended early."""

    kind: str  # "oom" or "failed"
    message: str  # one line
    time_s: float  # time.monotonic(), one clock for all processes of a machine


def write_order(folder: Path, order: CaseOrder) -> None:
    _write(folder / "order.json", asdict(order))


def read_order(folder: Path) -> CaseOrder:
    fields = json.loads((folder / "order.json").read_text())
    return CaseOrder(**{**fields, "case": BenchCase(**fields["case"])})


def write_report(folder: Path, rank: int, report: Any) -> None:
    """Args: report: a RankReport, or the dataclass of another worker than `gpualloc.bench.worker`."""
    _write(report_file(folder, rank), asdict(report))


def has_report(folder: Path, rank: int) -> bool:
    return report_file(folder, rank).exists()


def read_report(folder: Path, rank: int) -> RankReport:
    return RankReport(**json.loads(report_file(folder, rank).read_text()))


def write_failure(folder: Path, rank: int, failure: RankFailure) -> None:
    _write(_failure_file(folder, rank), asdict(failure))


def read_failure(folder: Path, rank: int) -> RankFailure | None:
    try:
        return RankFailure(**json.loads(_failure_file(folder, rank).read_text()))
    except FileNotFoundError:
        return None


def report_file(folder: Path, rank: int) -> Path:
    """What a rank measured; it is there once the rank is done."""
    return folder / f"rank{rank}.report.json"


def output_file(folder: Path, rank: int) -> Path:
    """Where a rank's stdout and stderr go."""
    return folder / f"rank{rank}.log"


def one_line(text: str) -> str:
    """The first line that says something, shortened."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return line if len(line) <= MESSAGE_MAX_CHARS else line[: MESSAGE_MAX_CHARS - 3] + "..."


def _failure_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.failure.json"


def _write(path: Path, fields: dict[str, Any]) -> None:
    write_whole(path, json.dumps(fields))
