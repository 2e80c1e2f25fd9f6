"""`gpualloc bench`: measures a grid of training cases on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.errors import GpuallocError, StoreError, UsageError

if TYPE_CHECKING:
    from gpualloc.bench.grid import GridCell
    from gpualloc.bench.options import BenchOptions
    from gpualloc.bench.runner import Progress
    from gpualloc.records import BenchCase, Environment, Measurement
    from gpualloc.store import ResultsStore


def _what(help: str, metavar: str | None = "LIST") -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="What is measured")


def _how(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel="How")


def _out(help: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Results")


def bench(
    ctx: typer.Context,
    workload: Annotated[str | None, _what("image, llm (default: both, or the one the data and the model are for).")] = None,
    model: Annotated[str | None, _what("mobilenet_v2, gpt_small, gpt2 (default: the first two).")] = None,
    image_size: Annotated[str | None, _what("Pixels (default: 100,300; on a CPU 100,200).")] = None,
    sequence_length: Annotated[str | None, _what("Tokens (default: 256; on a CPU 128).")] = None,
    batch_size: Annotated[str | None, _what("Samples per rank and step (default: by model and device).")] = None,
    precision: Annotated[str, _what("fp64, fp32, fp16, bf16.")] = "fp32",
    strategy: Annotated[str, _what("single, ddp.")] = "single,ddp",
    hook: Annotated[
        str | None,
        _what(
            "Gradient hooks of ddp: none, torch_fp16, torch_bf16, gpualloc_auto, gpualloc_fp32, gpualloc_fp16, gpualloc_bf16, "
            "gpualloc_int8 "
            "(default: none and both fp16 ones; for bf16 both bf16 ones)."
        ),
    ] = None,
    data: Annotated[str, _what("synthetic, digits, a folder of class/image files, or a text file or folder.", "NAME|PATH")] = "synthetic",
    device: Annotated[str | None, _how("cuda or cpu (default: cuda where there is a GPU).", "DEVICE")] = None,
    gpus: Annotated[str | None, _how("Numbers of GPUs for ddp (default: all).", "LIST")] = None,
    ranks_per_gpu: Annotated[int, _how("Ranks that share a GPU: as equal slices where MPS can be started.")] = 1,
    warmup_steps: Annotated[int | None, _how("Untimed steps at the start (default: 10; on a CPU 2).")] = None,
    steps: Annotated[int | None, _how("Timed steps per repeat (default: 20; on a CPU 2).")] = None,
    repeats: Annotated[int | None, _how("Repeats (default: 5; on a CPU 3); up to twice as many where they differ by over 5 %.")] = None,
    seed: Annotated[int, _how("Of the weights, the data and their order.")] = 0,
    timeout_s: Annotated[float, _how("Longest time for one case, in seconds.")] = 600.0,
    resume: Annotated[bool, _out("Go on with the newest run of the same options on this machine.", "--resume")] = False,
    as_json: Annotated[bool, _out("Print JSON instead of the table.", "--json")] = False,
    csv: Annotated[str | None, _out("Write CSV as well; with - print it instead of the table.", metavar="FILE|-")] = None,
    store: Annotated[
        Path | None, _out("Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite).", metavar="PATH")
    ] = None,
) -> None:
    """Measure how fast models train here: in one process, then with DDP and each gradient hook.

    LIST is one value or several with commas between; each combination is a case.

    Cases run in fresh processes; every rank has the same batch size (weak scaling).

    What has finished is kept, even if the rest fails or is interrupted.

    Examples:
      gpualloc bench
      gpualloc bench --workload image --image-size 100,200 --precision fp16
      gpualloc bench --model gpt2 --precision bf16 --gpus 1,2,4
      gpualloc bench --data digits --strategy ddp --hook none,gpualloc_fp16 --json
    """
    if as_json and csv == "-":
        raise UsageError("--json and --csv - both print to stdout; name a file for --csv or leave one of them out")
    if not 1 <= timeout_s <= 10**7:
        raise UsageError(f"--timeout-s {timeout_s:g} is out of range; choose 1 to 10,000,000")
    from gpualloc.bench import environment as machine
    from gpualloc.bench.grid import expand_grid
    from gpualloc.bench.options import BenchOptions
    from gpualloc.store import ResultsStore, default_store_path

    def make_options(device: str) -> BenchOptions:
        return BenchOptions(
            device=device,
            workloads=_names("--workload", workload),
            models=_names("--model", model),
            image_sizes_px=_numbers("--image-size", image_size),
            sequence_lengths=_numbers("--sequence-length", sequence_length),
            per_device_batch_sizes=_numbers("--batch-size", batch_size),
            precisions=_names("--precision", precision) or (),
            strategies=_names("--strategy", strategy) or (),
            hooks=_names("--hook", hook),
            num_gpus=_numbers("--gpus", gpus),
            ranks_per_gpu=ranks_per_gpu,
            num_warmup_steps=warmup_steps,
            num_steps=steps,
            num_repeats=repeats,
            data=data,
            seed=seed,
        )

    make_options(device or "cpu")  # refuses a wrong value before torch is loaded, which takes seconds
    options = make_options(machine.choose_device(device))
    cells = expand_grid(options, num_gpus=machine.count_gpus())
    environment = machine.detect_environment(options.device)
    show_log = _show_log if ctx.find_root().params.get("debug") else None
    path = store or default_store_path()
    with ResultsStore(path) as results:
        run_id, finished = _open_run(results, options, environment, resume=resume)
        how_to_see = f"run {run_id} is kept in {path}; see it again: gpualloc results show {run_id}{_store_option(store)}"
        _announce(cells, environment)
        measurements = _run(cells, results, run_id, environment, finished, how_to_see, timeout_s=timeout_s, show_log=show_log)
        if csv not in (None, "-"):
            _write_csv(str(csv), run_id, measurements)
        _print(measurements, results, run_id, as_json=as_json, as_csv=csv == "-")
    _say(how_to_see)
    statuses = {measurement.status for measurement in measurements}
    if "ok" not in statuses or statuses & {"failed", "oom"}:
        raise typer.Exit(1)


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    """ "a, b" -> ("a", "b")."""
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if "" in names:
        raise UsageError(f"{option} {text!r} has an empty entry; give one value or several with single commas between")
    return names


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """ "1,2" -> (1, 2)."""
    names = _names(option, text)
    try:
        return None if names is None else tuple(map(int, names))
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a list of whole numbers; give for example {option} 1,2") from None


def _open_run(
    results: ResultsStore, options: BenchOptions, environment: Environment, *, resume: bool
) -> tuple[int, dict[str, Measurement]]:
    """(run number, case key -> measurement that need not be made again)."""
    from dataclasses import asdict

    if resume:
        run_id = results.find_run(options=asdict(options), environment=environment)
        if run_id is not None:
            results.reopen_run(run_id)
            readable, _ = results.measurements(run_id)
            finished = {measurement.case.key(): measurement for measurement in readable if measurement.status == "ok"}
            _say(f"going on with run {run_id}, which has {len(finished)} finished cases")
            return run_id, finished
        _say(f"nothing to resume: {results.path} has no run of these options on this machine; starting a new one")
    command = shlex.join(["gpualloc", *sys.argv[1:]])
    return results.begin_run(command=command, options=asdict(options), environment=environment), {}


def _announce(cells: Sequence[GridCell], environment: Environment) -> None:
    """What the figures will stand for, on stderr."""
    from gpualloc.workloads import describe_data

    first = cells[0].case
    ddp_world_sizes = {cell.case.world_size for cell in cells if cell.case.strategy == "ddp"}
    backend = "gloo" if first.device == "cpu" else "nccl"
    ranks = f"{', '.join(map(str, sorted(ddp_world_sizes)))} {backend} ranks" if ddp_world_sizes else "one process"
    if first.device == "cpu":
        _say(f"CPU, {ranks}, not comparable with a GPU ({environment.device_name}, {environment.num_cpus} cores)")
    else:
        shared = f", {first.ranks_per_gpu} to a GPU" if first.ranks_per_gpu > 1 else ""
        _say(f"{environment.num_devices} x {environment.device_name}, {ranks}{shared}")
    cases = {cell.case.workload: cell.case for cell in reversed(cells)}  # the first of each workload
    _say("data: " + "; ".join(f"{workload}: {describe_data(case).description}" for workload, case in sorted(cases.items())))
    if any(cell.case.hook.startswith("gpualloc") for cell in cells):
        if environment.native.startswith("unavailable"):
            _say(f"warning: gpualloc hooks run in Python here, the compiled extension is {environment.native}")
        elif first.device == "cuda" and environment.native != "cuda":
            _say("warning: gpualloc hooks run without their kernels here, the extension has no CUDA half: see gpualloc doctor")


def _run(
    cells: Sequence[GridCell],
    results: ResultsStore,
    run_id: int,
    environment: Environment,
    finished: dict[str, Measurement],
    how_to_see: str,
    **settings: Any,
) -> list[Measurement]:
    """All cells measured and the run closed; on SIGINT and SIGTERM what had finished is kept and the command ends."""
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.bench.runner import run_grid

    try:
        with interruptible(), _progress(len(cells)) as progress:
            measurements = run_grid(
                cells, store=results, run_id=run_id, environment=environment, finished=finished, progress=progress, **settings
            )
    except BaseException as error:
        with suppress(StoreError):  # the error at hand says more
            results.finish_run(run_id, "interrupted")
        if not isinstance(error, Interrupted):
            raise
        _say(f"interrupted ({error}): add --resume to go on; {how_to_see}")
        raise typer.Exit(error.exit_code) from None
    results.finish_run(run_id, "complete")
    return measurements


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line per finished case."""
    if not sys.stderr.isatty():
        yield lambda number, case, measurement: _say(_line(number, total, measurement)) if measurement else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gpualloc.cli.tables import printable

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=total)

        def update(number: int, case: BenchCase, measurement: Measurement | None) -> None:
            bar.update(task, completed=number + (measurement is not None), description=printable(case.label()))

        yield update


def _line(number: int, total: int, measurement: Measurement) -> str:
    figures = f"{measurement.step_time_s * 1e3:.2f} ms a step" if measurement.step_time_s else f"{measurement.status}: {measurement.reason}"
    return f"[{number + 1}/{total}] {measurement.case.label()}: {figures}"


def _print(measurements: Sequence[Measurement], results: ResultsStore, run_id: int, *, as_json: bool, as_csv: bool) -> None:
    from dataclasses import asdict

    from gpualloc.cli.tables import output_console, print_json, print_measurements
    from gpualloc.records import to_json
    from gpualloc.store import to_csv

    if as_json:
        print_json({**asdict(results.run(run_id)), "measurements": [to_json(measurement) for measurement in measurements]})
    elif as_csv:
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


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
