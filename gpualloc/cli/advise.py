"""`gpualloc advise`: will more GPUs pay, in which setting, in what order, at what cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.errors import GpuallocError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gpualloc.advice import Evidence
    from gpualloc.advice.records import Option
    from gpualloc.money import BuyOrRent
    from gpualloc.records import Measurement
    from gpualloc.scaling import ScalingModel

_MAX_RUNS = 200  # newest ones
_MAX_GPUS = 2**16


def _panel(panel: str) -> Callable[..., Any]:
    def option(help: str, metavar: str | None = None, *names: str) -> Any:
        return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)

    return option


_what, _job, _money, _out = map(_panel, ("What is trained", "The job", "Money", "Results"))


def advise(
    model: Annotated[str | None, _what("Of those measured (default: the newest).", "NAME")] = None,
    image_size: Annotated[int | None, _what("Pixels (default: the size with the most numbers of GPUs).", "PX")] = None,
    sequence_length: Annotated[int | None, _what("Tokens.", "TOKENS")] = None,
    batch_size: Annotated[str | None, _what("Samples per GPU to consider (default: all measured).", "LIST")] = None,
    precision: Annotated[str | None, _what("Precisions to consider.", "LIST")] = None,
    strategy: Annotated[str | None, _what("Strategies to consider.", "LIST")] = None,
    hook: Annotated[str | None, _what("Hooks of ddp to consider.", "LIST")] = None,
    gpu: Annotated[str | None, _what("Name of the GPU, as measured (default: the newest's).", "NAME", "--gpu")] = None,
    gpus: Annotated[str | None, _what("Numbers of GPUs to answer for (default: those measured, and 1,2,4,8).", "LIST")] = None,
    gpus_per_node: Annotated[int, _what("Of the machines.", "COUNT")] = 8,
    gpu_memory_gib: Annotated[float | None, _what("Of a GPU (default: this machine's, where it is of that kind).", "GIB")] = None,
    min_efficiency: Annotated[float, _what("The bar above which more GPUs pay.", "FRACTION")] = 0.8,
    other_gpu: Annotated[
        list[str] | None,
        _what(
            "Another kind of GPU to answer for, by its name in CUDA; may be repeated. It computes COMPUTE times as fast as the measured "
            "one (default: as jobs measured on both, else as published memory bandwidths), with links LINK times as fast (1).",
            "NAME[:COMPUTE[:LINK]]",
            "--other-gpu",
        ),
    ] = None,
    forecast: Annotated[bool, typer.Option(help="Forecast what was not run.", rich_help_panel="What is trained")] = True,
    dataset_size: Annotated[int | None, _job("Samples of an epoch.", "SAMPLES")] = None,
    epochs: Annotated[float | None, _job("Passes over them (default: 1).", "COUNT")] = None,
    steps: Annotated[int | None, _job("Instead of epochs: steps, with one GPU's batch or the global one.", "COUNT")] = None,
    global_batch_size: Annotated[
        int | None, _job("Strong scaling: one batch divided among the GPUs. Default: weak, a GPU's batch stays.", "SAMPLES")
    ] = None,
    deadline: Annotated[str | None, _job("Longest time for the job: 12h, 3d.", "DURATION")] = None,
    budget: Annotated[str | None, _job("Highest cost of the job: 500, or '500 USD'.", "AMOUNT")] = None,
    price: Annotated[str | None, _money("Of one GPU and hour, with its currency: '2.50 EUR'.", "AMOUNT", "--price")] = None,
    prices: Annotated[
        Path | None, _money("Price book (else prices.yaml beside the results); the shipped examples come after it.", "FILE")
    ] = None,
    provider: Annotated[str | None, _money("Of the price book (default: the first with that GPU).", "NAME")] = None,
    buy: Annotated[int | None, _money("Compare buying so many GPUs with renting them.", "GPUS")] = None,
    jobs_per_month: Annotated[float | None, _money("The load: such jobs a month.", "COUNT")] = None,
    gpu_hours_per_month: Annotated[float | None, _money("Or the load in GPU-hours a month.", "HOURS")] = None,
    run: Annotated[int | None, _out("Only this run of 'gpualloc results list' (default: all).", "NUMBER")] = None,
    store: Annotated[Path | None, _out("Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite).", "PATH")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Results")] = False,
) -> None:
    """Advise on a training job: will more GPUs pay, in which setting, in what order, at what cost.

    It reads what gpualloc bench and gpualloc bench --rehearse left in the results and forecasts the rest; nothing is run.

    Examples:
      gpualloc advise
      gpualloc advise --model resnet50 --dataset-size 1281167 --epochs 90 --deadline 24h
      gpualloc advise --steps 100000 --price '2.50 EUR' --buy 8 --jobs-per-month 20
      gpualloc advise --steps 100000 --other-gpu 'NVIDIA L40S' --other-gpu 'NVIDIA H200:1.4'
    """
    from gpualloc.advice import make_job, select_evidence
    from gpualloc.advice.forecasts import forecaster_of
    from gpualloc.bench.notation import parse_numbers
    from gpualloc.cli.other_gpus import parse_gpu_kind
    from gpualloc.watching.durations import parse_duration_s, parse_price

    if not 0 < min_efficiency <= 1:
        raise UsageError(f"--min-efficiency {min_efficiency:g} is out of range; choose a fraction above 0, up to 1")
    counts = None if gpus is None else tuple(sorted(set(parse_numbers("--gpus", gpus))))
    for option, number in (("--gpus", (counts or (1,))[0]), ("--gpus", (counts or (1,))[-1]), ("--gpus-per-node", gpus_per_node)):
        if not 1 <= number <= _MAX_GPUS:
            raise UsageError(f"{option} {number} is out of range; choose 1 to {_MAX_GPUS:,}")
    if buy is not None and not 1 <= buy <= _MAX_GPUS:
        raise UsageError(f"--buy {buy} is out of range; choose 1 to {_MAX_GPUS:,}")
    if buy is None and (jobs_per_month is not None or gpu_hours_per_month is not None):
        raise UsageError("--jobs-per-month and --gpu-hours-per-month are the load of GPUs to buy; name their number: --buy")
    if gpu_memory_gib is not None and not 0 < gpu_memory_gib < 1e6:
        raise UsageError(f"--gpu-memory-gib {gpu_memory_gib:g} is out of range; choose a size above 0")
    if other_gpu and not forecast:
        raise UsageError("--other-gpu rests on forecasts; leave out --no-forecast")
    kinds = [parse_gpu_kind(text) for text in other_gpu or ()]
    given_price = None if price is None else parse_price("--price", price)
    amount, currency = _parse_budget(budget)
    job = make_job(
        dataset_size=dataset_size,
        epochs=epochs,
        steps=steps,
        global_batch_size=global_batch_size,
        deadline_s=None if deadline is None else parse_duration_s("--deadline", deadline),
        budget=amount,
    )
    only = _filters(model, image_size, sequence_length, batch_size, precision, strategy, hook)
    from gpualloc.money import load_price_book

    book = load_price_book(prices)
    history = _read(store, run)
    try:
        evidence = select_evidence(history, only=only, device_name=gpu)
    except GpuallocError:
        if model is not None:
            _print_memory_estimate(only, counts or (1, 2, 4, 8), gpu_memory_gib, as_json=as_json)
        raise
    from gpualloc.advice import advise as work_out
    from gpualloc.advice.money import find_rent, plan_purchase

    first = evidence.rows[0].case
    is_whole_gpu = first.device == "cuda" and first.ranks_per_gpu == 1
    rent, why_no_price = find_rent(book, evidence.device_name, is_whole_gpu=is_whole_gpu, given=given_price, provider=provider)
    if currency is not None and rent is not None and rent.currency != currency:
        raise UsageError(f"--budget is in {currency} and the price in {rent.currency}; give both in one currency")
    purchase: Callable[[Sequence[Option]], BuyOrRent] | None = None
    if buy is not None:
        purchase = plan_purchase(
            book, evidence.device_name, rent, num_gpus=buy, jobs_per_month=jobs_per_month, gpu_hours_per_month=gpu_hours_per_month
        )
    fitted = _fitted(evidence, history, gpus_per_node) if forecast and first.ranks_per_gpu == 1 else None
    advice = work_out(
        evidence,
        job,
        counts=counts,
        min_efficiency=min_efficiency,
        rent=rent,
        why_no_price=why_no_price,
        device_memory_bytes=_device_memory_bytes(gpu_memory_gib, evidence),
        gpus_per_node=gpus_per_node,
        forecaster=None if fitted is None else forecaster_of(fitted, evidence.device_name, gpus_per_node=gpus_per_node),
        buy=purchase,
    )
    if kinds:
        from gpualloc.cli.other_gpus import with_other_gpus

        advice = with_other_gpus(
            advice, kinds, evidence=evidence, model=fitted, history=history, gpus_per_node=gpus_per_node, book=book, provider=provider
        )
    from gpualloc.cli.advice_text import advice_json, print_advice
    from gpualloc.cli.tables import output_console, print_json

    if as_json:
        print_json(advice_json(advice))
    else:
        print_advice(advice, output_console())
    if advice.chosen is None:
        raise typer.Exit(1)


def _parse_budget(text: str | None) -> tuple[float | None, str | None]:
    """(amount, its currency where it has one)."""
    if text is None:
        return None, None
    try:
        return float(text), None
    except ValueError:
        from gpualloc.watching.durations import parse_price

        parsed = parse_price("--budget", text)
        return parsed.amount_per_hour, parsed.currency


def _filters(
    model: str | None,
    image_size: int | None,
    sequence_length: int | None,
    batch_size: str | None,
    precision: str | None,
    strategy: str | None,
    hook: str | None,
) -> dict[str, Collection[object]]:
    """Field of a case -> values to consider."""
    from gpualloc.bench.notation import parse_names, parse_numbers
    from gpualloc.bench.options import BenchOptions

    given: dict[str, Collection[object] | None] = {
        "model": None if model is None else (model,),
        "image_size_px": None if image_size is None else (image_size,),
        "sequence_length": None if sequence_length is None else (sequence_length,),
        "per_device_batch_size": None if batch_size is None else parse_numbers("--batch-size", batch_size),
        "precision": None if precision is None else parse_names("--precision", precision),
        "strategy": None if strategy is None else parse_names("--strategy", strategy),
        "hook": None if hook is None else parse_names("--hook", hook),
    }
    only = {name: values for name, values in given.items() if values is not None}
    checked = {
        name: only[field] for name, field in (("precisions", "precision"), ("strategies", "strategy"), ("hooks", "hook")) if field in only
    }
    BenchOptions(device="cpu", **checked)  # type: ignore[arg-type]  # refuses unknown names
    return only


def _read(store: Path | None, run: int | None) -> list[Measurement]:
    """The measurements of the run or of all runs, the newest first; none where there is no store yet."""
    from gpualloc.store import ResultsStore, default_store_path

    path = store or default_store_path()
    if not path.exists():
        if store is not None or run is not None:
            raise StoreError(f"no results at {path}: run gpualloc bench")
        return []
    with ResultsStore(path, create=False) as results:
        runs = [results.run(run)] if run is not None else results.runs()[:_MAX_RUNS]
        rows: list[Measurement] = []
        for each in runs:
            readable, problems = results.measurements(each.run_id)
            for problem in problems:
                _say(f"warning: {problem}")
            rows += reversed(readable)
    return rows


def _device_memory_bytes(gib: float | None, evidence: Evidence) -> int | None:
    """Of a GPU of the kind that was measured: as given, or of this machine where it has one of that name."""
    if gib is not None:
        return int(gib * 2**30)
    if evidence.rows[0].case.device != "cuda":
        return None
    from gpualloc.bench import nvml

    sizes = [size for name, size in zip(nvml.read_gpu_names(), nvml.read_memory_bytes(), strict=False) if name == evidence.device_name]
    return min(sizes, default=None)


def _fitted(evidence: Evidence, history: Sequence[Measurement], gpus_per_node: int) -> ScalingModel | None:
    """A model of the rows; None, with a warning, where there are too few to fit one."""
    from gpualloc.advice.forecasts import fit_steps

    model = evidence.rows[0].case.model
    others = [
        row
        for row in history
        if row.status == "ok" and row.case.model != model and row.environment and row.environment.device_name == evidence.device_name
    ]
    try:
        return fit_steps(evidence, others, gpus_per_node=gpus_per_node)
    except GpuallocError as error:
        _say(f"no forecast: {error}")
        return None


def _print_memory_estimate(only: dict[str, Collection[object]], counts: Sequence[int], gib: float | None, *, as_json: bool) -> None:
    """What can be said before anything ran: the memory of a GPU."""
    from gpualloc.advice.memory_table import memory_before
    from gpualloc.cli.advice_text import memory_json, print_memory
    from gpualloc.cli.tables import output_console, print_json

    rows = memory_before(only, counts, device_memory_bytes=None if gib is None else int(gib * 2**30))
    if not rows:
        return
    if as_json:
        print_json(memory_json(rows))
    else:
        print_memory(rows, output_console())


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
