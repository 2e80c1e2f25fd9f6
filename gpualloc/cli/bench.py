"""`gpualloc bench`: measures a grid of training cases on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.bench.precision import PRECISIONS
from gpualloc.cli.settings_file import source_of
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.strategies import HOOKS, STRATEGIES
from gpualloc.workloads import MODELS, OPTIMIZERS, TUNINGS

if TYPE_CHECKING:
    from gpualloc.records import Measurement
    from gpualloc.store import ResultsStore


def _what(help: str, metavar: str | None = "LIST") -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="What is measured")


def _which(help: str, metavar: str | None) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="Which cases")


def _detail(help: str, metavar: str = "SWITCH") -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="Details of a case")


def _how(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="How")


def _out(help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Results")


def bench(
    ctx: typer.Context,
    preset: Annotated[str | None, _which("quick, study or llm: a study file that comes with gpualloc.", "NAME")] = None,
    study: Annotated[Path | None, _which("A YAML or TOML file with these options as keys; options given here win.", "FILE")] = None,
    dry_run: Annotated[bool, _which("Print the cases, what is skipped and why, and how long it takes; run nothing.", None)] = False,
    max_minutes: Annotated[float | None, _which("A budget: the most informative cases that fit, first.", "MINUTES")] = None,
    workload: Annotated[str | None, _what("image, llm (default: both, or the one the data and the model are for).")] = None,
    model: Annotated[
        str | None, _what(f"{', '.join(MODELS)}, torchvision:NAME, timm:NAME, package.module:factory; by default the first and gpt_small.")
    ] = None,
    image_size: Annotated[str | None, _what("Pixels (default: 100,300; on a CPU 100,200, with fp16 64,128).")] = None,
    sequence_length: Annotated[str | None, _what("Tokens (default: 256; on a CPU 128).")] = None,
    batch_size: Annotated[str | None, _what("Samples per rank and step (default: by model and device).")] = None,
    precision: Annotated[str | None, _what(f"{', '.join(PRECISIONS)} (default: fp32).")] = None,
    strategy: Annotated[str | None, _what(f"{', '.join(STRATEGIES)} (default: single,ddp).")] = None,
    hook: Annotated[
        str | None, _what(f"Gradient hooks of ddp: {', '.join(HOOKS)} (default: none and both fp16 ones; for bf16 both bf16 ones).")
    ] = None,
    data: Annotated[
        str | None, _what("synthetic (default), digits, a folder of class/image files, or a text file or folder.", "NAME|PATH")
    ] = None,
    tuning: Annotated[str | None, _detail(f"{', '.join(TUNINGS)} (default: full).", "LIST")] = None,
    optimizer: Annotated[
        str | None, _detail(f"{', '.join(OPTIMIZERS)} (default: sgd for images, adamw for language models).", "LIST")
    ] = None,
    pin_memory: Annotated[str | None, _detail("Batches in pinned host memory (default: on where there is a GPU).")] = None,
    non_blocking: Annotated[str | None, _detail("Copies of batches that the host does not wait for (default: on).")] = None,
    num_workers: Annotated[str | None, _detail("Processes that read data, per rank (default: by data and cores).", "LIST")] = None,
    channels_last: Annotated[str | None, _detail("Memory format of images and convolutions (default: off).")] = None,
    compile: Annotated[str | None, _detail("torch.compile (default: off).")] = None,
    grad_accum: Annotated[str | None, _detail("Backward passes per optimiser step (default: 1).", "LIST")] = None,
    activation_checkpointing: Annotated[str | None, _detail("Activations computed again in the backward pass (default: off).")] = None,
    device: Annotated[str | None, _how("cuda or cpu (default: cuda where there is a GPU).", "cuda|cpu")] = None,
    gpus: Annotated[
        str | None, _how("Numbers of GPUs, for all strategies but single (default: all); 1..all for each number.", "LIST")
    ] = None,
    rehearse: Annotated[
        str | None, _how("Numbers of GPUs to rehearse on this one device, with the links modelled: docs/rehearse.md.", "LIST")
    ] = None,
    link: Annotated[
        str | None, _how("Of the rehearsed cluster, inside a node: nvlink4, pcie5, ... or a calibrated one.", "NAME|FILE")
    ] = None,
    network: Annotated[str | None, _how("Of the rehearsed cluster, between nodes: ib_ndr, ethernet_100g, ...", "NAME|FILE")] = None,
    gpus_per_node: Annotated[int | None, _how("Of the rehearsed cluster (default: 8).")] = None,
    ranks_per_gpu: Annotated[int | None, _how("Ranks that share a GPU (default: 1): as equal slices where MPS can be started.")] = None,
    warmup_steps: Annotated[int | None, _how("Untimed steps at the start (default: 10; on a CPU 2).")] = None,
    steps: Annotated[int | None, _how("Timed steps per repeat (default: 20; on a CPU 2).")] = None,
    repeats: Annotated[
        int | None, _how("Repeats in a round (default: 5; on a CPU 3); up to four times as many where it takes them.")
    ] = None,
    seed: Annotated[int | None, _how("Of the weights, the data and their order (default: 0).")] = None,
    rounds: Annotated[
        int | None, _how("Fresh groups of processes for each case, one in turn with others (default: 2; on a CPU 1).")
    ] = None,
    ci_percent: Annotated[
        float | None, _how("Repeats end when half of the 95 % confidence interval is this much of the step time (default: 2; on a CPU 5).")
    ] = None,
    on_oom: Annotated[
        str | None, _how("What a case that runs out of memory is: mark (default), or halve: its batch, until it fits.")
    ] = None,
    on_busy: Annotated[str | None, _how("When others use the device before a case: warn (default), error or skip.")] = None,
    timeout_s: Annotated[float | None, _how("Longest time for one round of a case, in seconds (default: 600).")] = None,
    resume: Annotated[bool, _out("Go on with the newest run of the same options on this machine.", "--resume")] = False,
    as_json: Annotated[bool, _out("Print JSON instead of the table.", "--json")] = False,
    csv: Annotated[str | None, _out("Write CSV as well; with - print it instead of the table.", metavar="FILE|-")] = None,
    store: Annotated[
        Path | None, _out("Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite).", metavar="PATH")
    ] = None,
) -> None:
    """Measure how fast models train here: in one process, then with DDP and each gradient hook.

    LIST is one value or several with commas between, and FIRST..LAST:STEP for numbers; SWITCH is on, off or on,off.
    Each combination is a case.

    Cases run in fresh processes; every rank has the same batch size (weak scaling).

    What has finished is kept, even if the rest fails or is interrupted.

    With --quality models are trained on real data to a target, to see what a precision or a hook does to the result:
    gpualloc bench --quality --help.

    Examples:
      gpualloc bench
      gpualloc bench --preset study --max-minutes 60 --dry-run
      gpualloc bench --workload image --image-size 100..500:100 --precision fp16
      gpualloc bench --model gpt2 --precision bf16 --gpus 1..all
      gpualloc bench --model gpt2 --rehearse 2,4,8,16 --link nvlink4 --network ib_ndr
      gpualloc bench --data digits --strategy ddp --hook none,gpualloc_fp16 --json
    """
    if as_json and csv == "-":
        raise UsageError("--json and --csv - both print to stdout; name a file for --csv or leave one of them out")
    if study is not None and preset is not None:
        raise UsageError("--study and --preset both name the cases; leave one of them out, or copy the preset into a file and change it")
    if dry_run and (resume or csv is not None):
        raise UsageError("--dry-run prints what would be measured, as a table or with --json; leave --resume and --csv out")
    from gpualloc.bench import environment as machine
    from gpualloc.bench.grid import expand_grids
    from gpualloc.bench.notation import NOTATIONS, parse_options
    from gpualloc.bench.options import BenchOptions
    from gpualloc.bench.settings import make_settings
    from gpualloc.bench.study import narrowed
    from gpualloc.cli.bench_run import announce, carry_out, open_run, prepare_run, say
    from gpualloc.store import ResultsStore, default_store_path

    asked_grids, asked_settings = _load_study(study, preset)
    options = {name: value for name, value in ctx.params.items() if name in NOTATIONS}
    if study is not None or preset is not None:  # which are asked for now, and say more than a settings file
        options = {name: value for name, value in options.items() if source_of(ctx, name) != "DEFAULT_MAP"}
    given = parse_options(options)
    given_settings = {
        "rounds": rounds,
        "ci_percent": ci_percent,
        "on_oom": on_oom,
        "on_busy": on_busy,
        "timeout_s": timeout_s,
        "max_minutes": max_minutes,
    }

    def make_grids(device: str) -> list[BenchOptions]:
        return [BenchOptions(device=device, **narrowed(grid, given)) for grid in asked_grids]

    make_grids(device or "cpu")  # refuses a wrong value before torch is loaded, which takes seconds
    grids = make_grids(machine.choose_device(device))
    settings = make_settings(
        grids[0].device, **{**asked_settings, **{name: value for name, value in given_settings.items() if value is not None}}
    )
    memory_bytes = machine.read_device_memory_bytes(grids[0].device)
    cells = expand_grids(grids, num_gpus=machine.count_gpus(), device_memory_bytes=memory_bytes)
    environment = machine.detect_environment(grids[0].device)
    path = store or default_store_path()
    if dry_run:
        from gpualloc.cli.dry_run import print_dry_run

        announce(cells, environment)
        print_dry_run(cells, settings, environment, path, as_json=as_json)
        return
    with ResultsStore(path) as results:
        run_id, finished = open_run(results, grids, environment, resume=resume)
        how_to_see = f"run {run_id} is kept in {path}; see it again: gpualloc results show {run_id}{_store_option(store)}"
        announce(cells, environment)
        show_log = _show_log if ctx.find_root().params.get("debug") else None
        grid_run = prepare_run(cells, results, run_id, environment, settings, finished, show_log)
        measurements, exit_code = carry_out(grid_run, how_to_see)
        if csv not in (None, "-"):
            _write_csv(str(csv), run_id, measurements)
        _print(measurements, results, run_id, as_json=as_json, as_csv=csv == "-")
    if exit_code:
        raise typer.Exit(exit_code)
    say(how_to_see)
    statuses = {measurement.status for measurement in measurements}
    if "ok" not in statuses or statuses & {"failed", "oom"}:
        raise typer.Exit(1)


def _load_study(path: Path | None, preset: str | None) -> tuple[Sequence[dict[str, Any]], dict[str, Any]]:
    """(fields of BenchOptions for each grid, fields of RunSettings) of the study file; without one, a single grid of defaults."""
    if path is None and preset is None:
        return ({},), {}
    from gpualloc.bench.study import load_preset, load_study

    asked = load_study(path) if path is not None else load_preset(str(preset))
    return asked.grids, asked.settings


def _print(measurements: Sequence[Measurement], results: ResultsStore, run_id: int, *, as_json: bool, as_csv: bool) -> None:
    from dataclasses import asdict

    from gpualloc.cli.formats import chosen
    from gpualloc.cli.measurements_text import print_measurements
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.records import to_json
    from gpualloc.store import to_csv

    if as_json:
        print_json({**asdict(results.run(run_id)), "measurements": [to_json(measurement) for measurement in measurements]})
    elif as_csv or chosen() == "csv":
        print(to_csv(run_id, measurements), end="")
    else:
        print_measurements(measurements, output_console())


def _write_csv(file: str, run_id: int, measurements: Sequence[Measurement]) -> None:
    from gpualloc.store import to_csv

    try:
        Path(file).write_bytes(to_csv(run_id, measurements).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise GpuallocError(
            f"--csv {file}: cannot be written: {error.strerror}; the results are kept, try: gpualloc results export {run_id} -o FILE"
        ) from error


def _store_option(store: Path | None) -> str:
    return "" if store is None else f" --store {shlex.quote(str(store))}"


def _show_log(text: str) -> None:
    print(text, file=sys.stderr)
