"""What the command tells the ranks of a built-in workload, and what they say meanwhile."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpualloc.records import BenchCase


@dataclass(frozen=True, kw_only=True)
class ProfileOrder:
    """What the ranks are told."""

    case: BenchCase
    trace_folder: str
    timeout_s: float  # for one collective


def write_order(folder: Path, order: ProfileOrder) -> None:
    (folder / "order.json").write_text(json.dumps(asdict(order)))


def read_order(folder: Path) -> ProfileOrder:
    fields = json.loads((folder / "order.json").read_text())
    return ProfileOrder(**{**fields, "case": BenchCase(**fields["case"])})


def progress_file(folder: Path) -> Path:
    """One line per stage, of rank 0."""
    return folder / "progress"


def trace_file(folder: Path, rank: int) -> Path:
    """The trace of a rank, in a folder for traces."""
    return folder / f"rank{rank}.json.gz"
