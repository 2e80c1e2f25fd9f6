"""The user's script as rank 0 of a rehearsal, in a process of its own, which leaves what was timed in the folder."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpualloc.bench import rank_files, worker


@dataclass(frozen=True, kw_only=True)
class RehearsalOrder:
    """What the process is told."""

    rehearsal: dict[str, Any]  # fields of Rehearsal
    script: dict[str, Any]  # fields of gpualloc.profiling.script.Script
    num_warmup_steps: int
    num_steps: int


def write_order(folder: Path, order: RehearsalOrder) -> None:
    (folder / "order.json").write_text(json.dumps(asdict(order)))


def main(folder: Path, rank: int) -> int:
    """Runs the script and leaves its report or its failure in `folder`. Returns the exit code."""
    order = RehearsalOrder(**json.loads((folder / "order.json").read_text()))
    return worker.run_guarded(folder, rank, lambda: _run(folder, rank, order))


def _run(folder: Path, rank: int, order: RehearsalOrder) -> None:
    from gpualloc.profiling.script import Script, run_script
    from gpualloc.rehearsal.step_timer import StepTimer
    from gpualloc.rehearsal.virtual_group import Rehearsal, rehearsed

    script = Script(**{**order.script, "arguments": tuple(order.script["arguments"])})
    timer = StepTimer(num_warmup_steps=order.num_warmup_steps, num_steps=order.num_steps, say=lambda text: print(text, file=sys.stderr))
    with rehearsed(Rehearsal(**order.rehearsal)):
        run_script(script, timer)
    if timer.result is None:
        message = (
            f"{script.name} ended after {timer.num_done} optimizer steps; {order.num_warmup_steps + 2 * order.num_steps + 1} are needed: "
            "let it train longer, or lower --steps and --warmup-steps"
        )
        # Not raised: a traceback of ours would say that the script has done something wrong.
        rank_files.write_failure(folder, rank, rank_files.RankFailure(kind="failed", message=message, time_s=time.monotonic()))
    else:
        rank_files.write_report(folder, rank, timer.result)
