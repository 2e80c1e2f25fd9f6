"""`gpualloc forecast`: step times on GPUs that were not measured, from rows that were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpualloc.cli.progress import show_working
from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from gpualloc.scaling import Forecast, ScalingModel, StepRow, Suggestion

app = typer.Typer(no_args_is_help=True)

ModelFile = Annotated[Path, typer.Option("--model", metavar="FILE", help="The model that 'gpualloc forecast fit' wrote.")]
Queries = Annotated[Path, typer.Option("--csv", metavar="FILE", help="Queries: the columns of the rows without times.")]
Like = Annotated[
    list[str] | None,
    typer.Option(
        "--like",
        metavar="NEW=KNOWN[:COMPUTE:LINK]",
        help="A cluster that was not measured: as KNOWN with GPUs COMPUTE and links LINK times as fast, such as l4=t4:1.9:1. Without them "
        "GPUs as their published memory bandwidths, where both names begin with that of a GPU.",
    ),
]
_SHOWN_S = 5e-6  # less rounds to 0.00 ms
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _forecast() -> None:
    """Forecast the step time on GPUs, nodes and batches that were not measured, with intervals, from rows that were.

    Examples:
      gpualloc forecast fit --store --out measured.json
      gpualloc forecast fit --csv rows.csv --out model.json
      gpualloc forecast predict --model model.json --csv queries.csv
      gpualloc forecast next --model model.json --csv queries.csv
    """


@app.command("fit")
def fit(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the model, as JSON.")],
    csv: Annotated[
        list[Path] | None,
        typer.Option("--csv", metavar="FILE", help="Measured rows; may be repeated. See docs/forecast.md for the columns."),
    ] = None,
    store: Annotated[bool, typer.Option("--store", help="Take what 'gpualloc bench' measured, from the results file.")] = False,
    store_path: Annotated[
        Path | None,
        typer.Option(
            "--store-path", metavar="PATH", help="The results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling model to measured rows, of one cluster or of several, and write it.

    Examples:
      gpualloc forecast fit --csv rows.csv --out model.json
      gpualloc forecast fit --csv here.csv --csv there.csv --out model.json
      gpualloc forecast fit --store --out measured.json
    """
    from gpualloc.scaling import ScalingModel
    from gpualloc.scaling.csv_rows import read_rows

    if not csv and not store and store_path is None:
        raise UsageError("no rows named; give --csv FILE with measured rows, or --store for what gpualloc bench measured")
    rows: list[StepRow] = [row for path in csv or [] for row in read_rows(path)]
    if store or store_path is not None:
        rows += _rows_of_store(store_path)
    _warn_of_placements(rows)
    with show_working(f"fitting {len(rows):,} rows"):
        model = ScalingModel.fit(rows)
    model.save(out)
    summary = _summary(model, out)
    if as_json:
        from gpualloc.cli.tables import print_json

        return print_json(summary)
    from rich.text import Text

    from gpualloc.cli.tables import output_console, printable, text_table

    console = output_console()
    table = text_table("cluster", "job", "rows", "GPUs", "batches", right=("rows", "GPUs", "batches"))
    for job in summary["jobs"]:
        low, high = job["batches"]
        table.add_row(printable(job["cluster"]), printable(job["model"]), f"{job['num_rows']:,}", str(job["most_gpus"]), f"{low}-{high}")
    console.print(table)
    console.print(Text(printable(f"{len(rows):,} rows fitted; written to {out}"), style="dim"), soft_wrap=True)
    return None


@app.command("predict")
def predict(
    model: ModelFile,
    csv: Queries,
    like: Like = None,
    terms: Annotated[
        bool,
        typer.Option(
            "--terms",
            help="What a step is made of: launch floor, arithmetic, contention, exposed communication, waiting for input, and what "
            "measurements correct; they add up. Hidden communication stands apart. On a narrow terminal columns go.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Forecast one step time for each query, in order, with a 90 % interval, or say what to measure first.

    Exit code 3 where every query was refused.

    Examples:
      gpualloc forecast predict --model model.json --csv queries.csv
      gpualloc forecast predict --model model.json --csv queries.csv --terms
      gpualloc forecast predict --model model.json --csv queries.csv --json
      gpualloc forecast predict --model model.json --csv queries.csv --like l4=t4:1.9:1
    """
    from gpualloc.scaling.csv_rows import read_queries

    queries = read_queries(csv)
    forecasts = _load(model, like).predict(queries)
    if as_json:
        from gpualloc.cli.tables import print_json

        print_json([_forecast_json(forecast, has_terms=terms) for forecast in forecasts])
    else:
        from gpualloc.cli.tables import output_console

        console = output_console()
        _print_forecasts(forecasts, console)
        if terms:
            console.print()
            _print_terms(forecasts, console)
    if all(forecast.kind == "refused" for forecast in forecasts):
        raise typer.Exit(3)


@app.command("next")
def next_measurement(model: ModelFile, csv: Queries, like: Like = None, as_json: Json = False) -> None:
    """Name the measurements that would narrow the forecasts of these queries most.

    Examples:
      gpualloc forecast next --model model.json --csv queries.csv
    """
    from gpualloc.scaling.csv_rows import read_queries

    suggestions = _load(model, like).suggest_next(read_queries(csv))
    if as_json:
        from gpualloc.cli.tables import print_json

        return print_json([_suggestion_json(suggestion) for suggestion in suggestions])
    from rich.text import Text

    from gpualloc.cli.tables import output_console, printable

    console = output_console()
    if not suggestions:
        console.print("no single measurement would narrow these forecasts by 1 % or more")
    for number, suggestion in enumerate(suggestions):
        console.print(Text(printable(f"{number + 1}. {suggestion.query.label()} on {suggestion.query.cluster}")), soft_wrap=True)
        console.print(Text(printable(f"   {suggestion.why}"), style="dim"), soft_wrap=True)
    return None


def _load(path: Path, likes: Sequence[str] | None) -> ScalingModel:
    from gpualloc.scaling import ScalingModel

    model = ScalingModel.load(path)
    for like in likes or []:
        name, _, rest = like.partition("=")
        if rest in model.clusters:
            model = model.like(name, known=rest)
            continue
        known, *ratios = rest.rsplit(":", 2)
        try:
            compute_ratio, link_ratio = map(float, ratios)
        except ValueError:
            raise UsageError(
                f"--like {like!r} is not NEW=KNOWN or NEW=KNOWN:COMPUTE:LINK, such as l4=t4:1.9:1, with KNOWN one of "
                f"{', '.join(model.clusters)}"
            ) from None
        model = model.like(name, known=known, compute_ratio=compute_ratio, link_ratio=link_ratio)
    return model


def _rows_of_store(path: Path | None) -> list[StepRow]:
    from gpualloc.cli.tables import printable
    from gpualloc.scaling.store_rows import rows_of_measurements
    from gpualloc.store import ResultsStore, default_store_path

    with ResultsStore(path or default_store_path(), create=False) as opened:
        measurements = []
        for run in reversed(opened.runs()):
            readable, problems = opened.measurements(run.run_id)
            measurements += readable
            for problem in problems:
                print(printable(problem), file=sys.stderr)
    rows, num_left_out = rows_of_measurements(measurements)
    if num_left_out:
        print(f"{num_left_out} measurements left out: failed, disturbed, or several ranks on a GPU", file=sys.stderr)
    if not rows:
        left_out = f"; {num_left_out} failed, were disturbed or shared a GPU" if num_left_out else ""
        raise UsageError(f"the results file has no measurement to fit{left_out}; run gpualloc bench with nothing else on the machine")
    return rows


def _warn_of_placements(rows: Sequence[StepRow]) -> None:
    wrong = [row for row in rows if row.placement and row.node_counts() is None]
    if wrong:
        from gpualloc.cli.tables import printable

        row = wrong[0]
        example = f"{row.placement!r} for {row.num_gpus} GPUs on {row.num_nodes} nodes"
        print(printable(f"{len(wrong)} placements do not add up and count as unknown, the first: {example}"), file=sys.stderr)


def _summary(model: ScalingModel, out: Path) -> dict[str, Any]:
    jobs = []
    for cluster in model.clusters:
        for job in model.clusters[cluster].fit.frame.jobs:
            rows = model.evidence(cluster, job.name).rows
            batches = [row.per_device_batch_size for row in rows]
            jobs.append(
                {
                    "cluster": cluster,
                    "model": job.name,
                    "num_rows": len(rows),
                    "most_gpus": max(row.num_gpus for row in rows),
                    "batches": [min(batches), max(batches)],
                }
            )
    return {"out": str(out), "num_rows": len(model.rows), "jobs": jobs}


def _forecast_json(forecast: Forecast, *, has_terms: bool) -> dict[str, Any]:
    from dataclasses import asdict

    data = asdict(forecast)
    if not has_terms:
        del data["terms"]
    return {**data.pop("query"), **data}


def _suggestion_json(suggestion: Suggestion) -> dict[str, Any]:
    from dataclasses import asdict

    data = asdict(suggestion)
    return {**data.pop("query"), **data}


_TERMS = {
    "launch_floor_s": ("floor", 15),  # header, importance
    "arithmetic_s": ("arithmetic", 16),
    "contention_s": ("contention", 12),
    "exposed_comm_s": ("comm", 14),
    "input_wait_s": ("input", 13),
    "correction_s": ("correction", 11),
    "hidden_comm_s": ("hidden comm", 2),
}


def _print_terms(forecasts: Sequence[Forecast], console: Console) -> None:
    from gpualloc.cli.columns import Column, Row, table_lines
    from gpualloc.cli.tables import printable

    def text(seconds: float | None) -> str:
        return "-" if seconds is None or abs(seconds) < _SHOWN_S else f"{seconds * 1e3:.2f}"

    parts = [Column(header, importance) for header, importance in _TERMS.values()]
    columns = (Column("cluster", 1, is_left=True), Column("query", 19, is_left=True), Column("step ms", 20), *parts)
    rows = [
        Row(
            (
                printable(each.query.cluster),
                printable(each.query.label()),
                text(each.step_time_s),
                *(text(value) for value in _values(each)),
            )
        )
        for each in forecasts
    ]
    for line in table_lines(columns, rows, console.width):
        console.print(line, soft_wrap=True)


def _values(forecast: Forecast) -> list[float | None]:
    return [None if forecast.terms is None else getattr(forecast.terms, name) for name in _TERMS]


def _print_forecasts(forecasts: Sequence[Forecast], console: Console) -> None:
    from rich.text import Text

    from gpualloc.cli.tables import printable, text_table

    right = ("step ms", "90 % interval")
    table = text_table("cluster", "query", *right, "kind", right=right, fixed=("kind",))
    refusals: dict[str, int] = {}
    for forecast in forecasts:
        step, interval = "-", "-"
        if forecast.step_time_s is not None and forecast.low_s is not None and forecast.high_s is not None:
            step = f"{forecast.step_time_s * 1e3:.2f}"
            interval = f"{forecast.low_s * 1e3:.2f}-{forecast.high_s * 1e3:.2f}"
        elif forecast.reason:
            refusals[forecast.reason] = refusals.get(forecast.reason, 0) + 1
        table.add_row(printable(forecast.query.cluster), printable(forecast.query.label()), step, interval, forecast.kind)
    console.print(table)
    for reason, count in refusals.items():
        console.print(Text(printable(f"{count} refused: {reason}"), style="yellow"), soft_wrap=True)
