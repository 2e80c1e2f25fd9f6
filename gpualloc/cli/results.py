"""`gpualloc results`: list, show, export, compare and delete what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpualloc.cli.settings_file import handed_down
from gpualloc.errors import StoreError, UsageError

if TYPE_CHECKING:
    from gpualloc.findings import Findings
    from gpualloc.records import Measurement
    from gpualloc.store import Comparison, ResultsStore, Run

app = typer.Typer(invoke_without_command=True)

Store = Annotated[
    Path | None,
    typer.Option("--store", metavar="PATH", help="Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run number of 'gpualloc results list', or 'latest'.")]


@app.callback()
def _results(ctx: typer.Context, store: Store = None, as_json: Json = False) -> None:
    """Look at what was measured: list, show, export, compare or delete runs.

    Alone it lists the runs.

    Examples:
      gpualloc results
      gpualloc results show latest
      gpualloc results compare 3
    """
    if ctx.invoked_subcommand is None:
        list_runs(store=store, as_json=as_json)
    else:  # given here, the options hold for the sub-command, unless it has its own
        ctx.default_map = handed_down(ctx, store=store, as_json=as_json)


@app.command("list")
def list_runs(store: Store = None, as_json: Json = False) -> None:
    """List the runs, newest first.

    Examples:
      gpualloc results list
      gpualloc results list --json --store team.sqlite
    """
    from gpualloc.cli.results_text import print_runs
    from gpualloc.cli.tables import output_console, print_json, printable

    path = _store_path(store)
    runs = []
    if path.exists():
        with _open(path) as opened:
            runs = opened.runs()
    if as_json:
        print_json([_run_json(run) for run in runs])
    if not runs:
        print(f"no results yet at {printable(str(path))}: run gpualloc bench", file=sys.stderr)
    elif not as_json:
        print_runs(runs, output_console())


@app.command("show")
def show(
    run: RunName = "latest",
    workload: Annotated[str | None, typer.Option(metavar="LIST", help="Only these workloads, with commas between; so all below.")] = None,
    model: Annotated[str | None, typer.Option(metavar="LIST", help="Only these models.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="LIST", help="Only these precisions.")] = None,
    strategy: Annotated[str | None, typer.Option(metavar="LIST", help="Only these strategies.")] = None,
    hook: Annotated[str | None, typer.Option(metavar="LIST", help="Only these communication hooks.")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="LIST", help="Only these image sizes, in pixels.")] = None,
    status: Annotated[str | None, typer.Option(metavar="LIST", help="Only these statuses: ok, skipped, oom or failed.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show the figures of a run (default: the latest).

    Examples:
      gpualloc results show
      gpualloc results show 3 --precision fp16 --hook none,gpualloc_fp16
    """
    from gpualloc.cli.formats import chosen
    from gpualloc.cli.measurements_text import print_measurements
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.store import to_csv

    filters: list[tuple[str, str | None, Callable[[Measurement], object]]] = [
        ("--workload", workload, lambda row: row.case.workload),
        ("--model", model, lambda row: row.case.model),
        ("--precision", precision, lambda row: row.case.precision),
        ("--strategy", strategy, lambda row: row.case.strategy),
        ("--hook", hook, lambda row: row.case.hook),
        ("--image-size", image_size, lambda row: row.case.image_size_px),
        ("--status", status, lambda row: row.status),
    ]
    found, whole_run = _read_run(store, run)
    measurements = whole_run
    for option, wanted, value in filters:
        if wanted is None:
            continue
        names = {name.strip() for name in wanted.split(",")}
        present = {str(value(row)) for row in measurements}
        measurements = [row for row in measurements if str(value(row)) in names]
        if not measurements:
            allowed = ", ".join(sorted(present)) or "none"
            raise UsageError(f"{option} {wanted!r} matches no case of run {found.run_id}; what it can be here: {allowed}")
    if as_json:
        print_json(_run_json(found, measurements))
        return
    if chosen() == "csv":  # with every figure, not those that are shown
        print(to_csv(found.run_id, measurements), end="")
        return
    _print_run_line(found)
    print_measurements(measurements, output_console(), whole_run=whole_run)


@app.command("export")
def export(
    run: RunName = "latest",
    format: Annotated[
        Literal["csv", "json"] | None, typer.Option(help="csv: one line per case. json: everything. Default: as FILE ends, else csv.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write, or - for stdout.")] = Path("-"),
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Write the figures of a run to a file.

    Examples:
      gpualloc results export -o results.csv
      gpualloc results export 3 --format json -o -
    """
    from gpualloc.cli.tables import json_text
    from gpualloc.store import to_csv

    found, measurements = _read_run(store, run)
    is_json = as_json or (format or output.suffix.removeprefix(".").lower()) == "json"
    text = json_text(_run_json(found, measurements)) + "\n" if is_json else to_csv(found.run_id, measurements)
    encoded = text.encode("utf-8", "backslashreplace")
    if str(output) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(encoded)  # as bytes: CSV's line ends must stay CR LF
        return
    try:
        output.write_bytes(encoded)
    except OSError as error:
        raise StoreError(f"{output} cannot be written: {error.strerror}; choose another file with -o") from error
    print(f"{len(measurements)} cases of run {found.run_id} written to {output}", file=sys.stderr)


@app.command("compare")
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN [RUN]]", help="The run to read (default: the latest); or an old and a new one.")
    ] = None,
    min_efficiency: Annotated[
        float | None, typer.Option(metavar="FRACTION", help="Above this efficiency more ranks pay (default: 0.8).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the findings as well, as .png, .svg or .pdf.")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Read the result: which precision, size, number of GPUs and details pay, with 95 % intervals.

    With two runs: the same cases in both, has the second become faster than the first? A verdict is "not certain" where the
    intervals from the lowest to the highest repeat overlap.

    Examples:
      gpualloc results compare
      gpualloc results compare 3 --min-efficiency 0.7 --plot findings.png
      gpualloc results compare 3 latest --json
    """
    names = runs or ["latest"]
    if len(names) > 2:
        raise UsageError(f"{len(names)} runs given; name one run to read, or two to compare")
    if len(names) == 2:
        if min_efficiency is not None or plot is not None:
            raise UsageError("--min-efficiency and --plot are for one run and two are given; leave them out, or name one run")
        _compare_two(names[0], names[1], store, as_json=as_json)
    else:
        _read_one(names[0], store, min_efficiency=min_efficiency, plot=plot, as_json=as_json)


def _read_one(name: str, store: Path | None, *, min_efficiency: float | None, plot: Path | None, as_json: bool) -> None:
    from gpualloc import plots
    from gpualloc.cli.findings_text import print_findings
    from gpualloc.cli.tables import output_console, print_json
    from gpualloc.findings import DEFAULT_MIN_EFFICIENCY, find
    from gpualloc.findings.panels import panels

    bar = DEFAULT_MIN_EFFICIENCY if min_efficiency is None else min_efficiency
    if not 0 < bar <= 1:
        raise UsageError(f"--min-efficiency {bar:g} is out of range; choose a fraction above 0, up to 1")
    if plot is not None:
        plots.check_plot_path(plot)
    run, measurements = _read_run(store, name)
    findings = find(measurements, min_efficiency=bar)
    if as_json:
        print_json(_findings_json(run, findings))
    else:
        _print_run_line(run)
        print_findings(findings, output_console())
    if plot is not None:
        rows = panels(findings)
        if not rows:
            raise UsageError(f"--plot has nothing to draw: run {run.run_id} has no two cases that differ in precision, ranks or a detail")
        plots.draw(rows, plot)
        print(f"findings of run {run.run_id} drawn to {plot}", file=sys.stderr)


def _compare_two(a: str, b: str, store: Path | None, *, as_json: bool) -> None:
    from gpualloc.cli.results_text import print_comparison
    from gpualloc.cli.tables import output_console, print_json, printable
    from gpualloc.store import compare as compare_measurements
    from gpualloc.store import environment_differences

    (run_a, measurements_a), (run_b, measurements_b) = _read_run(store, a), _read_run(store, b)
    comparison = compare_measurements(measurements_a, measurements_b)
    differences = environment_differences(run_a.environment, run_b.environment)
    if differences:
        print(f"gpualloc: warning: the runs were made in different environments: {printable('; '.join(differences))}", file=sys.stderr)
    if as_json:
        print_json(_comparison_json(comparison, run_a, run_b, differences))
    else:
        print_comparison(comparison, run_a.run_id, run_b.run_id, output_console())


@app.command("delete")
def delete(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Delete a run and its figures for good.

    Examples:
      gpualloc results delete 3
      gpualloc results delete 4 --yes
    """
    from gpualloc.cli.tables import print_json

    with _open(_store_path(store)) as opened:
        found = opened.run(_parse_run(run))
        count = sum(found.case_counts.values())
        if not yes:
            typer.confirm(f"Delete run {found.run_id} of {found.started_at_utc} with {count} cases?", abort=True, err=True)
        opened.delete_run(found.run_id)
    if as_json:
        print_json({"deleted_run_id": found.run_id, "deleted_cases": count})
    else:
        print(f"run {found.run_id} deleted, {count} cases")


def _store_path(store: Path | None) -> Path:
    from gpualloc.store import default_store_path

    return store or default_store_path()


def _open(path: Path) -> ResultsStore:
    from gpualloc.store import ResultsStore

    return ResultsStore(path, create=False)


def _parse_run(name: str) -> int | None:
    """The run's number; None for the latest."""
    if name == "latest":
        return None
    if not (name.isascii() and name.isdecimal() and len(name) < 19):  # SQLite's integers have 64 bits
        raise UsageError(f"RUN is {name!r}; give a number of 'gpualloc results list', or 'latest'")
    return int(name)


def _read_run(store: Path | None, name: str) -> tuple[Run, list[Measurement]]:
    """The run and its measurements; rows that cannot be read are named on stderr."""
    from gpualloc.cli.tables import printable

    run_id = _parse_run(name)
    with _open(_store_path(store)) as opened:
        run = opened.run(run_id)
        measurements, problems = opened.measurements(run.run_id)
    for problem in problems:
        print(f"gpualloc: warning: {printable(problem)}", file=sys.stderr)
    return run, measurements


def _run_json(run: Run, measurements: list[Measurement] | None = None) -> dict[str, Any]:
    from dataclasses import asdict

    from gpualloc.records import to_json

    rows = {} if measurements is None else {"measurements": [to_json(row) for row in measurements]}
    return {**asdict(run), **rows}


def _print_run_line(run: Run) -> None:
    from rich.text import Text

    from gpualloc.cli.tables import output_console, printable

    command = f"run {run.run_id}, {run.status}, {run.started_at_utc}: {run.command}"
    output_console().print(Text(printable(command) + "\n", style="dim"))


def _findings_json(run: Run, findings: Findings) -> dict[str, Any]:
    from dataclasses import asdict

    from gpualloc.findings.words import answers

    return {"run_id": run.run_id, "answers": answers(findings), **asdict(findings)}


def _comparison_json(comparison: Comparison, a: Run, b: Run, differences: list[str]) -> dict[str, Any]:
    from gpualloc.cli.measurements_text import case_label
    from gpualloc.records import to_json

    return {
        "run_id_a": a.run_id,
        "run_id_b": b.run_id,
        "environment_differences": differences,
        "compared": [
            {
                "case_key": row.case.key(),
                "label": case_label(row.case),
                "step_time_ratio": row.step_time_ratio,
                "verdict": row.verdict,
                "a": to_json(row.a),
                "b": to_json(row.b),
            }
            for row in comparison.compared
        ],
        "only_in_a": [case_label(case) for case in comparison.only_in_a],
        "only_in_b": [case_label(case) for case in comparison.only_in_b],
    }
