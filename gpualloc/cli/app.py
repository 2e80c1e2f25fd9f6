"""The `gpualloc` command: its sub-commands, global options, and how errors are shown."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from gpualloc.cli.lazy_commands import LazyCommand, LazyCommands
from gpualloc.cli.settings_paths import has_settings_files
from gpualloc.errors import GpuallocError

if TYPE_CHECKING:
    from gpualloc.cli.settings_file import SettingsFiles

_QUALITY = "bench --quality"
_DEBUG_HINT = "gpualloc --debug ..."
_MAX_SHOWN = 200  # characters of a file's name
_MEASURE, _MACHINE = "Measure", "This machine"
COMMANDS = LazyCommands(
    {
        "bench": LazyCommand(
            "gpualloc.cli.bench:bench",
            "Measure how fast models train here: in one process, then with DDP and each gradient hook.",
            panel=_MEASURE,
        ),
        _QUALITY: LazyCommand(
            "gpualloc.cli.quality:quality",
            "Train on real small data, over seeds: is it as good in that precision and with that hook, and how much faster?",
            hidden=True,
        ),
        "results": LazyCommand(
            "gpualloc.cli.results:app", "Look at what was measured: list, show, export, compare or delete runs.", panel=_MEASURE
        ),
        "profile": LazyCommand(
            "gpualloc.cli.profile:profile",
            "Profile a training step: where its time goes, what bounds it, and what to try next.",
            panel=_MEASURE,
        ),
        "advise": LazyCommand(
            "gpualloc.cli.advise:advise",
            "Advise on a training job: will more GPUs pay, in which setting, in what order, at what cost.",
        ),
        "study": LazyCommand(
            "gpualloc.cli.study:study",
            "Study one question with few runs: do more GPUs pay for a model, or from which size on?",
        ),
        "rehearse": LazyCommand(
            "gpualloc.cli.rehearse:rehearse",
            "Rehearse a training script on more GPUs than there are: it runs as rank 0 of N, computing for real over modelled links.",
            panel=_MEASURE,
        ),
        "calibrate": LazyCommand(
            "gpualloc.cli.calibrate:calibrate",
            "Calibrate a link: run collectives between real ranks, alone, and keep what they took as a link model.",
            panel=_MEASURE,
        ),
        "forecast": LazyCommand(
            "gpualloc.cli.forecast:app",
            "Forecast the step time on GPUs, nodes and batches that were not measured, with intervals, from rows that were.",
        ),
        "simulate": LazyCommand(
            "gpualloc.cli.simulate:simulate",
            "Simulate scheduling policies on a cluster over days: completion times, fairness, restarts, utilisation, cost.",
        ),
        "plan": LazyCommand(
            "gpualloc.cli.plan:plan",
            "Plan which workload gets which GPUs: type, number, devices, strategy, precision, batch, start, finish and cost.",
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
            panel=_MACHINE,
        ),
        "report": LazyCommand(
            "gpualloc.cli.report:report",
            "Report what was found: one HTML file with the answer on top and every figure below, in English or Japanese.",
        ),
        "doctor": LazyCommand(
            "gpualloc.cli.doctor:doctor",
            "Check what training needs here: torch, the extension, GPUs and their links, limits, settings; or a training script.",
            panel=_MACHINE,
        ),
        "config": LazyCommand(
            "gpualloc.cli.config:config", "Show settings and where they come from: files, environment variables, defaults.", panel=_MACHINE
        ),
    }
)


class _Commands(TyperGroup):
    """Shows an error as one line on stderr, without a traceback unless --debug asks for it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = COMMANDS  # type: ignore[assignment]
        self._is_listing = False
        self._settings: SettingsFiles | None = None  # None where there is no file
        self._settings_error: GpuallocError | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return COMMANDS.listed(cmd_name) if self._is_listing else COMMANDS.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._listing():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._listing():
            return super().shell_complete(ctx, incomplete)

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        self._settings = self._settings_error = None
        if has_settings_files():
            from gpualloc.cli.settings_file import read_settings_files

            try:
                self._settings = read_settings_files()
                self._settings.check_sections(COMMANDS)
            except GpuallocError as error:  # raised where errors are shown
                self._settings_error = error
            else:
                extra.setdefault("default_map", self._settings.root_values())
        return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["bench"] and "--quality" in args:  # other options than those of a benchmark of speed, so a command of its own
            args = [_QUALITY, *(word for word in args[1:] if word != "--quality")]
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(name, str) and name != "config":  # which shows what is wrong with them itself
            if self._settings_error is not None:
                raise self._settings_error
            from gpualloc.cli.settings_file import SettingsFiles

            settings = self._settings or SettingsFiles()
            ctx.default_map = {**(ctx.default_map or {}), name: settings.of_command(command, (name,), ctx)}
            ctx.meta["gpualloc.settings"] = settings.described(command, name)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("gpualloc: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            from gpualloc.cli.suggestions import with_suggestion

            is_ours = isinstance(error, GpuallocError)
            # Typer's own (exit, abort, usage) all but abort carry an exit code; a closed pipe is for Typer to handle too.
            if not is_ours and (hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError))):
                if isinstance(getattr(error, "message", None), str):
                    error.message = with_suggestion(error.message)  # type: ignore[attr-defined]
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            from gpualloc.cli.tables import printable

            if is_ours:
                message = with_suggestion(str(error))
            elif isinstance(error, OSError) and error.filename is not None:  # such as a name that is too long for the file system
                message = f"{_shortened(str(error.filename))}: {error.strerror}; name another file or folder"
            else:
                message = f"unexpected {type(error).__name__}: {error}; see more with: {_DEBUG_HINT}"
            print(f"gpualloc: error: {printable(message)}", file=sys.stderr)
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """Commands are named and not loaded meanwhile."""
        self._is_listing = True
        try:
            yield
        finally:
            self._is_listing = False


def _leave_types_of_switches_out() -> None:
    """typer from 0.29 on writes <bool> beside each switch in the help, as if it took a value; before there is no such method."""
    shown = getattr(TyperOption, "display_type_rich", None)
    if shown is not None:
        TyperOption.display_type_rich = lambda self, ctx: None if self.is_flag else shown(self, ctx)  # type: ignore[method-assign]


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


_leave_types_of_switches_out()
app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
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
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print what is installed and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="GPUALLOC_DEBUG", show_envvar=False, help="Show tracebacks of errors.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", envvar="GPUALLOC_QUIET", show_envvar=False, help="No progress; warnings and errors only.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", envvar="GPUALLOC_VERBOSE", show_envvar=False, help="Where settings come from, and the time taken."),
    ] = False,
) -> None:
    """Will more GPUs pay off for this training job? Measure, then decide.

    Examples:
      gpualloc bench            measure this machine
      gpualloc results show     the latest figures again
      gpualloc profile          where a training step goes
      gpualloc advise           will more GPUs pay, and at what cost
      gpualloc rehearse ...     the same on GPUs that are not there
      gpualloc forecast ...     more GPUs from few measurements
      gpualloc simulate         what scheduling policies would do
      gpualloc plan ...         which workload gets which GPUs
      gpualloc run plan.json    make the plan happen
      gpualloc watch            what the GPUs do while jobs run
      gpualloc report           all of it as one page to send
      gpualloc doctor           what works here and what does not
    """
    if quiet or verbose:
        from gpualloc.cli.verbosity import be_quiet, be_verbose

        if quiet:
            be_quiet(ctx)
        if verbose:
            be_verbose(ctx)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character must not end the command
    try:
        app(prog_name="gpualloc")
    except SystemExit as leaving:
        _flush_output(leaving)
        raise
    except KeyboardInterrupt:  # before a command was reached
        print("gpualloc: interrupted", file=sys.stderr)
        sys.exit(130)


def _flush_output(leaving: SystemExit) -> None:
    """What was printed may not reach a full disk; Python itself would say so with a traceback, as it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leaving.code = leaving.code or 1
    except OSError as error:
        print(f"gpualloc: error: the output cannot be written: {error.strerror}; write to another place", file=sys.stderr)
        leaving.code = 1
    else:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush that Python does when it ends
