"""Runs the user's own training script in this process, as `python script.py` would, while a recorder watches."""

from __future__ import annotations

import contextlib
import gc
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpualloc.errors import GpuallocError, UsageError


class Watcher(Protocol):
    """What watches the script: it raises `TrainingStopped` out of an optimizer's step once it has seen enough."""

    num_done: int  # steps

    @property
    def is_traced(self) -> bool: ...  # what is wanted is there
    @property
    def is_done(self) -> bool: ...  # and all else
    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script or a module, and its arguments."""

    name: str  # a path, or a module's dotted name
    is_module: bool
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        return " ".join(["-m", self.name] if self.is_module else [self.name]) + "".join(f" {each}" for each in self.arguments)


def parse_script(words: Sequence[str]) -> Script:
    """What follows `--`: `train.py args`, or `-m package.module args`.

    Raises:
        UsageError: it names no Python script that is there.
    """
    first = words[0]
    if first == "-m":
        if len(words) < 2:
            raise UsageError("-m names no module; write: gpualloc profile -- -m package.module")
        return Script(name=words[1], is_module=True, arguments=tuple(words[2:]))
    if os.path.basename(first).startswith("python") and not os.path.isfile(first):
        raise UsageError(f"{first!r} is an interpreter and the script runs in this one; write: gpualloc profile -- {' '.join(words[1:])}")
    if os.path.basename(first) in ("torchrun", "accelerate"):
        raise UsageError(f"{first!r} starts other processes; put it in front: torchrun --no-python ... gpualloc profile -- train.py")
    if not os.path.isfile(first):
        raise UsageError(f"the script {first!r} does not exist; give the path of a Python file: gpualloc profile -- train.py")
    if not first.endswith(".py"):
        raise UsageError(f"the script {first!r} is not a .py file; give the Python file that trains: gpualloc profile -- train.py")
    return Script(name=first, is_module=False, arguments=tuple(words[1:]))


def run_script(script: Script, recorder: Watcher) -> tuple[str, ...]:
    """Runs the script until it ends or the recorder stops it. What it prints goes to stderr. Returns notes on how it ended.

    Raises:
        GpuallocError: the script failed before all was recorded; its traceback is on stderr.
    """
    from gpualloc.profiling.recorder import TrainingStopped

    failure: BaseException | None = None
    with _as_main_program(script), _stdout_to_stderr(), recorder:
        try:
            if script.is_module:
                runpy.run_module(script.name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script.name, run_name="__main__")
        except TrainingStopped:
            pass
        except GpuallocError:
            raise
        except SystemExit as error:
            failure = error if error.code not in (None, 0) else None
        except Exception as error:
            failure = error
            if not recorder.is_traced:
                traceback.print_exc()
    gc.collect()  # ends the workers of loaders that the script left in the middle
    _leave_process_group()
    if failure is None:
        return ()
    what = f"{type(failure).__name__}: {failure}"
    if recorder.is_traced:
        return (f"the script ended with {what} after the trace; operators were not counted",) if not recorder.is_done else ()
    raise GpuallocError(f"{script.name} ended with {what} after {recorder.num_done} steps; its own output is above") from failure


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _as_main_program(script: Script) -> Iterator[None]:
    before_arguments, before_path = sys.argv, sys.path[:]
    folder = os.getcwd() if script.is_module else str(Path(script.name).resolve().parent)
    sys.argv = [script.name, *script.arguments]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before_arguments, before_path


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Also of what C code and child processes print: stdout is for the result alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
