"""The Slurm engine: a batch script for every job, whose nodes run torchrun; Slurm shares the GPUs out."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpualloc.launch.engine import Ended, EngineLostError, agent_log, attempt_folder, job_environment, parse_options, python_path
from gpualloc.launch.job import Job
from gpualloc.launch.local import describe_failure
from gpualloc.launch.torchrun import Meeting, node_command

_POLL_S = 2.0  # the controller serves the whole cluster
_LOST_LIMIT_S = 300.0  # a controller that is started again is away for less; jobs run on meanwhile
_COMMAND_TIMEOUT_S = 30.0
_EXIT_FILE = "exit.json"
_NOT_TAKEN = "python", "lost-after", "poll-every"  # options of ours; all others are sbatch's
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED", "REQUEUE_HOLD", "SIGNALING")

_MEETING = {"node_rank": "SLURM_NODEID", "head": "GPUALLOC_HEAD", "port": "GPUALLOC_PORT"}  # the first is another one on every node
_FIND_MEETING = """export GPUALLOC_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export GPUALLOC_PORT=$({python} -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"""
_SCRIPT = """#!/bin/bash
{directives}
{exports}
end() {{ printf '{{"code": %d}}\n' "$1" > {exit_file}; exit "$1"; }}
{check}
{meeting}
requeue=
trap 'requeue=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1  # the time limit is near: ranks save a checkpoint and end
srun --kill-on-bad-exit=1 {command} &
wait $!; code=$?
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done  # a signal ends a wait early
if [ -n "$requeue" ] && [ "$code" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID" && exit 0; fi
printf '{{"code": %d}}\\n' "$code" > {exit_file}
exit "$code"
"""


class SlurmEngine:
    """Submits batch scripts and asks the controller how they are.

    Args:
        options: sbatch's, such as partition=gpu or time=2:00:00 (a flag: exclusive=), which replace those that are written here; and
            python=PATH, the interpreter on the nodes, lost-after=SECONDS, how long the controller may be away, poll-every=SECONDS.
    """

    name = "slurm"

    def __init__(self, options: Sequence[str]) -> None:
        given = parse_options("slurm", options, None)
        self._python = given.get("python", sys.executable)
        self._lost_after_s = float(given.get("lost-after", _LOST_LIMIT_S))
        self._poll_s = float(given.get("poll-every", _POLL_S))
        self._options = {name.removeprefix("--"): value for name, value in given.items() if name not in _NOT_TAKEN}

    def leased_devices(self, job: Job) -> tuple[str, ...]:
        return ()

    def render(self, job: Job, folder: Path) -> str:
        return self._script(job, folder, 1)

    def start(self, job: Job, folder: Path, attempt: int) -> SlurmAttempt:
        if shutil.which("sbatch") is None:
            raise EngineLostError("there is no sbatch here; run this where Slurm is, or see what would be submitted with --dry-run")
        script = attempt_folder(folder, attempt) / "job.sh"
        script.write_text(self._script(job, folder, attempt))
        answer = _ask("sbatch", "--parsable", str(script))
        return SlurmAttempt(answer.strip().split(";")[0], folder, attempt, poll_s=self._poll_s, lost_after_s=self._lost_after_s)

    def _script(self, job: Job, folder: Path, attempt: int) -> str:
        log = agent_log(folder, attempt).absolute()
        directives = {
            "job-name": job.file_name,
            "nodes": str(job.num_nodes),
            "ntasks-per-node": "1",
            **({"cpus-per-task": str(job.devices_per_node)} if job.is_cpu else {"gpus-per-node": str(job.devices_per_node)}),
            "requeue": "",
            "open-mode": "append",
            "signal": "B:USR1@120",
            "output": str(log),
            **self._options,
        }
        if "gres" in self._options:
            directives.pop("gpus-per-node", None)
        environment = {**job_environment(job, folder), "PYTHONPATH": python_path()}
        if not job.is_bare:
            environment["GPUALLOC_LOG_FOLDER"] = str(log.parent)
        meeting = Meeting(**{name: f"${variable}" for name, variable in _MEETING.items()}) if job.num_nodes > 1 else None
        command = node_command(job, attempt=attempt, meeting=meeting, python=self._python)
        return _SCRIPT.format(
            directives="\n".join(f"#SBATCH --{name}{f'={shlex.quote(value)}' if value else ''}" for name, value in directives.items()),
            exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            check=_check(job),
            meeting=_FIND_MEETING.format(python=shlex.quote(self._python)) if meeting is not None else "",
            command=shlex.join(command) if meeting is None else f"bash -c {shlex.quote(_on_node(command))}",
            exit_file=shlex.quote(str(log.parent / _EXIT_FILE)),
        )


class SlurmAttempt:
    """A submitted batch job."""

    def __init__(self, slurm_id: str, folder: Path, attempt: int, *, poll_s: float = _POLL_S, lost_after_s: float = _LOST_LIMIT_S) -> None:
        self.reference = f"slurm job {slurm_id}"
        self._id, self._log = slurm_id, agent_log(folder, attempt)
        self._poll_s, self._lost_after_s = poll_s, lost_after_s
        self._next_poll_s, self._answered_s = 0.0, time.monotonic()

    @classmethod
    def of_reference(cls, reference: str, folder: Path, attempt: int) -> SlurmAttempt:
        return cls(reference.rsplit(" ", 1)[-1], folder, attempt)

    def poll(self) -> Ended | None:
        now_s = time.monotonic()
        if now_s < self._next_poll_s:
            return None
        self._next_poll_s = now_s + self._poll_s
        try:
            state = self._state()
        except EngineLostError:
            if now_s - self._answered_s > self._lost_after_s:
                raise
            return None
        self._answered_s = now_s
        if state in _ALIVE:
            return None
        code = self._exit_code()
        if code == 0 and state in ("COMPLETED", ""):
            return Ended(is_ok=True)
        if code is not None and code > 0:
            return describe_failure(self._log, code)
        return Ended(is_ok=False, message=f"{self.reference} is {state or 'unknown to the controller'}")

    def process_ids(self) -> Iterable[int]:
        return ()  # Slurm's own

    def terminate(self) -> None:
        try:
            if self._state() == "PENDING":
                self.kill()
            else:
                _ask("scancel", "--signal=TERM", self._id)  # the ranks', not the script's
        except EngineLostError:
            return

    def kill(self) -> None:
        try:
            if self._state() in _ALIVE:
                _ask("scancel", self._id)
        except EngineLostError:
            return

    def _state(self) -> str:
        """As Slurm writes it; "" for a job that the controller has forgotten."""
        try:
            answer = _ask("scontrol", "--oneliner", "show", "job", self._id)
        except EngineLostError as error:
            if "Invalid job id" in str(error):
                return ""
            raise
        found = re.search(r"\bJobState=(\w+)", answer)
        return found[1] if found else ""

    def _exit_code(self) -> int | None:
        try:
            return int(json.loads((self._log.parent / _EXIT_FILE).read_text())["code"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _on_node(command: Sequence[str]) -> str:
    variables = {f"${variable}" for variable in _MEETING.values()}
    return " ".join(["exec", *(f'"{word}"' if word in variables else shlex.quote(word) for word in command)])


def _check(job: Job) -> str:
    """Fewer GPUs than planned would train another global batch, silently."""
    if job.is_cpu:
        return ""
    wanted = job.devices_per_node
    return (
        f'if [ "${{SLURM_GPUS_ON_NODE:-0}}" -lt {wanted} ]; then\n'
        f'  echo "gpualloc: planned {wanted} GPUs a node, Slurm granted ${{SLURM_GPUS_ON_NODE:-0}}; plan again with what there is" >&2\n'
        "  end 3\nfi"
    )


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineLostError(f"{command[0]} does not answer: {error}; see what Slurm says with: sinfo") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EngineLostError(f"{shlex.join(command[:2])} failed: {said}; see what Slurm says with: sinfo")
    return done.stdout
