"""The `gpualloc` command: its sub-commands, global options, and how errors are shown."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gpualloc.cli.lazy_commands import LazyCommand, LazyCommands
from gpualloc.errors import GpuallocError

_QUALITY = "bench --quality"
_COMMANDS = LazyCommands(
    {
        "bench": LazyCommand(
            "gpualloc.cli.bench:bench", "Measure how fast models train here: in one process, then with DDP and each gradient hook."
        ),
        _QUALITY: LazyCommand(
            "gpualloc.cli.quality:quality",
            "Train on real small data, over seeds: is it as good in that precision and with that hook, and how much faster?",
            hidden=True,
        ),
        "results": LazyCommand("gpualloc.cli.results:app", "Look at what was measured: list, show, export, compare or delete runs."),
        "profile": LazyCommand(
            "gpualloc.cli.profile:profile", "Profile a training step: where its time goes, what bounds it, and what to try next."
        ),
        "rehearse": LazyCommand(
            "gpualloc.cli.rehearse:rehearse",
            "Rehearse a training script on more GPUs than there are: it runs as rank 0 of N, computing for real over modelled links.",
        ),
        "calibrate": LazyCommand(
            "gpualloc.cli.calibrate:calibrate",
            "Calibrate a link: run collectives between real ranks, alone, and keep what they took as a link model.",
        ),
        "run": LazyCommand(
            "gpualloc.cli.run:run",
            "Run a plan: start its jobs here or on an engine, watch them, start them again from their checkpoint, keep their rates.",
        ),
        "status": LazyCommand(
            "gpualloc.cli.status:status", "Show the jobs that gpualloc run started: how far they are, how fast, and what went wrong."
        ),
        "logs": LazyCommand("gpualloc.cli.logs:logs", "Show what a rank of a job printed, of the newest start or an earlier one."),
        "stop": LazyCommand(
            "gpualloc.cli.stop:stop",
            "Stop jobs: those that train with gpualloc.train save a checkpoint first and can be run again from it.",
        ),
        "watch": LazyCommand(
            "gpualloc.cli.watch:app",
            "Watch GPUs and the processes on them: utilisation, memory, power, clocks; keep it, and flag GPUs that idle.",
        ),
        "doctor": LazyCommand(
            "gpualloc.cli.doctor:doctor", "Check what gpualloc needs: torch, the compiled extension, GPUs and their driver, disk."
        ),
    }
)


class _Commands(TyperGroup):
    """Shows an error as one line on stderr, without a traceback unless --debug asks for it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _COMMANDS  # type: ignore[assignment]
        self._is_listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _COMMANDS.listed(cmd_name) if self._is_listing else _COMMANDS.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._is_listing = True
        super().format_help(ctx, formatter)
        self._is_listing = False

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["bench"] and "--quality" in args:  # other options than those of a benchmark of speed, so a command of its own
            args = [_QUALITY, *(word for word in args[1:] if word != "--quality")]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("gpualloc: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            is_ours = isinstance(error, GpuallocError)
            # Typer's own (exit, abort, usage) all but abort carry an exit code; a closed pipe is for Typer to handle too.
            if not is_ours and (hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError))):
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            from gpualloc.cli.tables import printable

            message = str(error) if is_ours else f"unexpected {type(error).__name__}: {error}; see more with: gpualloc --debug ..."
            print(f"gpualloc: error: {printable(message)}", file=sys.stderr)
            raise typer.Exit(getattr(error, "exit_code", 1)) from None


app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    from gpualloc import _native

    build = _native.describe(load=False)
    print(f"gpualloc {_installed_version('gpualloc') or '(not installed, run from its source)'}")
    if build.built_for_torch is None:
        print(f"extension: {build.reason}")
    else:
        archs = ", ".join(f"sm_{arch}" for arch in build.cuda_archs)
        skipped = f" ({build.cuda_skipped})" if build.cuda_skipped else ""
        cuda = f"CUDA {build.built_for_cuda} ({archs})" if build.built_for_cuda else f"CPU only{skipped}"
        print(f"extension: built for torch {build.built_for_torch}, {cuda}")
    print(f"torch {_installed_version('torch') or 'is not installed'}")
    raise typer.Exit


def _installed_version(distribution: str) -> str | None:
    import importlib.metadata  # 20 ms that `--help` need not wait

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print what is installed and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Will more GPUs pay off for this training job? Measure, then decide.

    \b
    Examples:
      gpualloc bench            measure this machine
      gpualloc results show     the latest figures again
      gpualloc profile          where a training step goes
      gpualloc rehearse ...     the same on GPUs that are not there
      gpualloc watch            what the GPUs do while jobs run
      gpualloc doctor           what works here and what does not
    """


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character must not end the command
    app(prog_name="gpualloc")
