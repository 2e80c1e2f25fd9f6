"""`gpualloc profile`: where a training step goes, and what to do about it."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.bench.precision import PRECISIONS
from gpualloc.cli.settings_file import source_of
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.strategies import HOOKS, STRATEGIES
from gpualloc.workloads import MODELS, OPTIMIZERS

if TYPE_CHECKING:
    from gpualloc.profiling.records import Profile, RankProfile
    from gpualloc.records import BenchCase

_MAX_STEPS = 1000  # traced: a trace of them is as large as one reads in a browser
_DEFAULT_TIMEOUT_S = 600.0
_DEFAULT_MODEL = "mobilenet_v2"
_DEFAULT_IMAGE_SIZE_PX = {"cuda": "224", "cpu": "128"}


def _what(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="A built-in workload")


def _how(help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Recording")


def profile(
    ctx: typer.Context,
    script: Annotated[
        list[str] | None, typer.Argument(metavar="-- SCRIPT.py ARGS", help="Your own training; without it a built-in workload.")
    ] = None,
    model: Annotated[
        str | None,
        _what(f"{', '.join(MODELS)}; torchvision:NAME, timm:NAME or package.module:factory (default: {_DEFAULT_MODEL}).", "NAME"),
    ] = None,
    image_size: Annotated[str | None, _what("Pixels (default: 224; on a CPU 128).", "PX")] = None,
    sequence_length: Annotated[str | None, _what("Tokens (default: 256; on a CPU 128).", "TOKENS")] = None,
    batch_size: Annotated[str | None, _what("Samples per rank and step (default: the model's).", "SAMPLES")] = None,
    precision: Annotated[str | None, _what(f"{', '.join(PRECISIONS)} (default: fp32).", "NAME")] = None,
    strategy: Annotated[str | None, _what(f"{', '.join(STRATEGIES)} (default: single).", "NAME")] = None,
    hook: Annotated[str | None, _what(f"Gradient hook of ddp: {', '.join(HOOKS)} (default: none).", "NAME")] = None,
    data: Annotated[
        str | None, _what("synthetic (default), digits, a folder of class/image files, or a text file or folder.", "NAME|PATH")
    ] = None,
    optimizer: Annotated[str | None, _what(f"{', '.join(OPTIMIZERS)} (default: by workload).", "NAME")] = None,
    num_workers: Annotated[str | None, _what("Processes that read data, per rank (default: by data and cores).", "COUNT")] = None,
    pin_memory: Annotated[str | None, _what("Batches in pinned host memory: on or off.", "SWITCH")] = None,
    channels_last: Annotated[str | None, _what("Memory format of images: on or off.", "SWITCH")] = None,
    compile: Annotated[str | None, _what("torch.compile: on or off.", "SWITCH")] = None,
    grad_accum: Annotated[str | None, _what("Backward passes per optimizer step (default: 1).", "COUNT")] = None,
    activation_checkpointing: Annotated[str | None, _what("Activations computed again: on or off.", "SWITCH")] = None,
    device: Annotated[str | None, _what("cuda or cpu (default: cuda where there is a GPU).", "cuda|cpu")] = None,
    gpus: Annotated[str | None, _what("Number of GPUs, for all strategies but single (default: all).", "COUNT")] = None,
    ranks_per_gpu: Annotated[str | None, _what("Ranks that share a GPU (default: 1).", "COUNT")] = None,
    seed: Annotated[str | None, _what("Of the weights and the data (default: 0).", "NUMBER")] = None,
    steps: Annotated[int, _how("Steps to trace, after as many without the profiler.")] = 10,
    warmup_steps: Annotated[int, _how("Steps before, of which nothing is recorded.", "--warmup-steps", "--warmup")] = 5,
    trace_dir: Annotated[
        Path | None, _how("Folder that keeps the traces (default: gpualloc/traces/TIME under ~/.local/share).", metavar="DIR")
    ] = None,
    stop: Annotated[bool, _how("End the script once all is recorded.", "--stop/--no-stop")] = True,
    timeout_s: Annotated[float | None, _what("Longest time for the whole, in seconds (default: 600).")] = None,
    as_json: Annotated[bool, _how("Print JSON instead of the table.", "--json")] = False,
) -> None:
    """Profile a training step: where its time goes, what bounds it, and what to try next.

    Without a script it trains a built-in workload in fresh processes.

    With one (after --) it runs it here and watches: a step ends where the first torch.optim optimizer has stepped.

    What the script prints goes to stderr. For several ranks put torchrun in front.

    The traces are kept for https://ui.perfetto.dev.

    Examples:
      gpualloc profile
      gpualloc profile --model gpt2 --precision bf16 --strategy ddp --gpus 2
      gpualloc profile --model resnet50 --data photos/ --num-workers 2 --json
      gpualloc profile --steps 20 -- train.py --lr 0.1
      torchrun --nproc-per-node 2 --no-python gpualloc profile -- train.py
    """
    _check_numbers(steps=steps, warmup_steps=warmup_steps, timeout_s=timeout_s)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler's library writes about itself to stderr
    if script:
        written = _given_workload_options(ctx)
        if written:
            raise UsageError(f"{written[0]} is for a built-in workload and a script is given; leave it out, or the script")
        found = _profile_script(script, steps=steps, warmup_steps=warmup_steps, trace_dir=trace_dir, stop=stop)
    else:
        if not stop:
            raise UsageError("--no-stop is for a script; give one after --, or leave it out")
        found = _profile_case(
            ctx, device, steps=steps, warmup_steps=warmup_steps, trace_dir=trace_dir, timeout_s=timeout_s or _DEFAULT_TIMEOUT_S
        )
    if found is None:  # another rank prints
        return
    _print(found, as_json=as_json)


_RECORDING_OPTIONS = ("script", "steps", "warmup_steps", "trace_dir", "stop", "as_json")


def _given_workload_options(ctx: typer.Context) -> list[str]:
    """On the command line: what a settings file or a variable says of built-in workloads does not contradict a script."""
    given = (name for name in ctx.params if name not in _RECORDING_OPTIONS and source_of(ctx, name) == "COMMANDLINE")
    return [f"--{name.replace('_', '-')}" for name in given]


def _check_numbers(*, steps: int, warmup_steps: int, timeout_s: float | None) -> None:
    for option, value in (("--steps", steps), ("--warmup-steps", warmup_steps)):
        if not 1 <= value <= _MAX_STEPS:
            raise UsageError(f"{option} {value} is out of range; choose 1 to {_MAX_STEPS:,}")
    if timeout_s is not None and timeout_s <= 0:
        raise UsageError(f"--timeout-s {timeout_s:g} is out of range; choose more than 0 seconds")


def _profile_case(
    ctx: typer.Context, device: str | None, *, steps: int, warmup_steps: int, trace_dir: Path | None, timeout_s: float
) -> Profile:
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.profiling.engine import profile_case

    case = _choose_case(ctx, device, steps=steps, warmup_steps=warmup_steps)
    folder = _make_trace_folder(trace_dir, f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}")
    subject = f"{case.label()}, {case.per_device_batch_size} per rank, {case.device}"
    _say(f"profiling {subject}")
    show_log = _show_log if ctx.find_root().params.get("debug") else None
    try:
        with interruptible():
            ranks = profile_case(case, trace_folder=folder, timeout_s=timeout_s, say=_say, show_log=show_log)
    except Interrupted as error:
        _say(f"interrupted ({error}): no profile was made")
        raise typer.Exit(error.exit_code) from None
    return _judged(subject, ranks)


def _choose_case(ctx: typer.Context, device: str | None, *, steps: int, warmup_steps: int) -> BenchCase:
    """The one case that the options name.

    Raises:
        UsageError: several, or one that cannot run here.
    """
    from gpualloc.bench import environment as machine
    from gpualloc.bench.grid import expand_grid
    from gpualloc.bench.notation import NOTATIONS, parse_options
    from gpualloc.bench.options import BenchOptions

    given = {name: value for name, value in ctx.params.items() if name in NOTATIONS and name not in ("steps", "warmup_steps")}
    given = {name: value for name, value in given.items() if value is not None}
    fields = parse_options({"model": _DEFAULT_MODEL, "strategy": "single", **given})
    fields.update(num_steps=steps, num_warmup_steps=warmup_steps, num_repeats=1)
    if "ddp" in fields["strategies"]:
        fields.setdefault("hooks", ("none",))
    asked = BenchOptions(device=device or "cpu", **fields)  # refuses a wrong value before torch is loaded, which takes seconds
    chosen_device = machine.choose_device(device)
    if asked.workload_of(asked.chosen_models()[0]) == "image" and asked.image_sizes_px is None:
        fields.update(parse_options({"image_size": _DEFAULT_IMAGE_SIZE_PX[chosen_device]}))
    cells = expand_grid(
        BenchOptions(device=chosen_device, **fields),
        num_gpus=machine.count_gpus(),
        device_memory_bytes=machine.read_device_memory_bytes(chosen_device),
    )
    if len(cells) != 1:
        labels = "; ".join(cell.case.label() for cell in cells[:3])
        raise UsageError(f"a profile is of one case and these options name {len(cells)} ({labels}); give one value for each")
    if cells[0].skip_reason is not None:
        raise UsageError(f"{cells[0].case.label()} cannot be profiled here: {cells[0].skip_reason}")
    return cells[0].case


def _profile_script(words: list[str], *, steps: int, warmup_steps: int, trace_dir: Path | None, stop: bool) -> Profile | None:
    """The profile of all ranks; None on all ranks but the first."""
    from gpualloc.profiling.script import parse_script
    from gpualloc.profiling.torchrun import exchange, find_place, trace_folder_name

    script, place = parse_script(words), find_place()
    folder = _make_trace_folder(trace_dir, trace_folder_name())
    if place.rank == 0:
        ranks = f" on {place.world_size} ranks" if place.world_size > 1 else ""
        _say(f"profiling {script.command}{ranks}")

    from gpualloc.profiling.analysis import analyse
    from gpualloc.profiling.messages import trace_file
    from gpualloc.profiling.recorder import Recorder
    from gpualloc.profiling.script import run_script

    recorder = Recorder(
        num_warmup_steps=warmup_steps,
        num_steps=steps,
        trace_path=trace_file(folder, place.rank),
        stops=stop,
        say=_say if place.rank == 0 else lambda text: None,
    )
    try:
        notes = run_script(script, recorder)
        own: RankProfile = analyse(
            recorder, rank=place.rank, world_size=place.world_size, num_local_ranks=place.num_local_ranks, notes=notes
        )
    except GpuallocError as error:
        if place.world_size > 1 and place.rank != 0:
            exchange(place, None, error=str(error))
        raise
    ranks_found = exchange(place, own)
    return _judged(script.command, ranks_found) if ranks_found else None


def _judged(subject: str, ranks: list[RankProfile]) -> Profile:
    from gpualloc.profiling.records import Profile
    from gpualloc.profiling.verdict import judge

    return Profile(subject=subject, ranks=tuple(ranks), verdict=judge(ranks))


def _make_trace_folder(asked: Path | None, name: str) -> Path:
    from gpualloc.store import default_store_path

    folder = (asked or default_store_path().parent / "traces" / name).absolute()  # a script may go to another folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpuallocError(f"the folder {folder} cannot be made: {error.strerror}; name another one with --trace-dir") from error
    if not os.access(folder, os.W_OK):
        raise GpuallocError(f"the folder {folder} cannot be written to; name another one with --trace-dir")
    return folder


def _print(found: Profile, *, as_json: bool) -> None:
    from gpualloc.cli.profile_text import print_profile
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.profiling.records import profile_to_json

    if as_json:
        print_json(profile_to_json(found))
    else:
        print_profile(found, output_console())


def _show_log(text: str) -> None:
    print(text, file=sys.stderr)


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
