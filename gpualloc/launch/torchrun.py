"""The command line of torch elastic that starts a job's ranks on one node, the same for every engine, and what it says of failures."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpualloc.launch import guard
from gpualloc.launch.job import Job


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the nodes of a job meet: numbers, or words of a shell that become them."""

    node_rank: str
    head: str  # address of the first node
    port: str


def guarded(command: Sequence[str], python: str = sys.executable) -> list[str]:
    """The command that becomes `command` and ends with its parent."""
    return [python, "-I", "-S", guard.__file__, "--", *command]


def node_command(job: Job, *, attempt: int, meeting: Meeting | None = None, python: str = sys.executable, numa: bool = False) -> list[str]:
    """What one node runs: torchrun, or for a bare job its command.

    Restarts are the launcher's, which counts them and knows why: torchrun makes none itself. A node alone meets itself on a port that
    is free; several are told who is first, since one need not know itself by the address that others have for it.

    Args:
        attempt: of the job; each meets under another name, of which torchrun also makes a folder.
        meeting: of a job over several nodes.
        python: the interpreter on the nodes.
        numa: bind each rank to the cores and memory near its GPU.
    """
    if job.is_bare:
        return [python, "-m", "gpualloc", *job.command[1:]] if job.command[0] == "gpualloc" else [*job.command]
    if meeting is None:
        where = [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "127.0.0.1:0",
            "--local-addr",
            "127.0.0.1",
            "--rdzv-id",
            f"{job.file_name}-{attempt}",
        ]
    else:
        where = ["--node-rank", meeting.node_rank, "--master-addr", meeting.head, "--master-port", meeting.port]
    return [
        *(python, "-m", "torch.distributed.run"),
        *("--nnodes", str(job.num_nodes), "--nproc-per-node", str(job.ranks_per_node), *where),
        *(("--numa-binding", "node") if numa else ()),
        *("--max-restarts", "0", "--no-python"),
        *guarded(rank_command(job.command, python), python),
    ]


def rank_command(command: Sequence[str], python: str) -> list[str]:
    """`python` is the interpreter that gpualloc has, and a script is run by it."""
    first = command[0]
    if first in ("python", "python3"):
        return [python, *command[1:]]
    return [python, *command] if first.endswith(".py") else [*command]


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """The rank whose failure torchrun saw first."""

    rank: int
    exit_code: int  # below 0: minus the signal


def first_failure(agent_log: str) -> RankEnd | None:
    """From the table that torchrun prints ("Root Cause (first observed failure)"); None where there is none."""
    _, found, table = agent_log.rpartition("Root Cause")
    rank, code = re.search(r"rank\s*:\s*(\d+)", table), re.search(r"exitcode\s*:\s*(-?\d+)", table)
    return RankEnd(rank=int(rank[1]), exit_code=int(code[1])) if found and rank and code else None


def said_timeout(path: Path) -> bool:
    """Whether a rank's log ends with a collective that was waited for too long: gloo's words or those of NCCL's watchdog."""
    return re.search(r"timed out|timeout", "\n".join(_last_lines(path)), re.IGNORECASE) is not None


def last_line(path: Path) -> str:
    """The last line of a log that says something, shortened."""
    lines = _last_lines(path)
    # A rank's last words at the end of a script are often torch's warnings, and its traceback's last line comes before them.
    said = [re.sub(r"^\[rank\d+\]:\s*", "", line.strip()) for line in lines if line.strip()]  # torch's prefix, once it has a group
    error = next((line for line in reversed(said) if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)), None)
    return (error or (said[-1] if said else ""))[:300]


def _last_lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))  # NCCL's watchdog has 50 lines of C++ frames after its message
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
