"""`gpualloc report`: what was found, as one HTML file for those who decide and those who check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpualloc.cli.progress import show_working
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.whole_files import write_whole

if TYPE_CHECKING:
    from gpualloc.report import ReportInputs

_PORT_RANGE = (0, 65_535)


def _also(help: str, metavar: str = "FILE") -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(help=help, metavar=metavar, rich_help_panel="What else is shown")
    return found


def _serving(help: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(help=help, rich_help_panel="Live")
    return found


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run numbers, 'latest' (default), 'all', or .json files of 'gpualloc results export'."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write, or - for stdout.")] = Path(
        "report.html"
    ),
    lang: Annotated[Literal["en", "ja"], typer.Option(help="Language of the page: English or Japanese.")] = "en",
    price_per_hour: Annotated[str | None, typer.Option(metavar="PRICE", help="Of one GPU, with its currency: '2.50 EUR'.")] = None,
    min_efficiency: Annotated[
        float | None, typer.Option(metavar="FRACTION", help="Above this efficiency more ranks pay (default: 0.8).")
    ] = None,
    profile: Annotated[
        Path | None, _also("What 'gpualloc profile --json' printed, or a folder with it and its traces.", "FILE|DIR")
    ] = None,
    rehearsal: Annotated[Path | None, _also("What 'gpualloc rehearse --json' printed.")] = None,
    quality: Annotated[list[Path] | None, _also("What 'gpualloc bench --quality' wrote. Repeatable.")] = None,
    watch: Annotated[Path | None, _also("A file of 'gpualloc watch'; its last day is shown.")] = None,
    forecast: Annotated[Path | None, _also("What 'gpualloc forecast predict --json' printed.")] = None,
    advice: Annotated[Path | None, _also("What 'gpualloc advise --json' printed.")] = None,
    plan: Annotated[Path | None, _also("A plan of 'gpualloc plan'.")] = None,
    simulation: Annotated[Path | None, _also("What 'gpualloc simulate --json' printed.")] = None,
    timeline: Annotated[Path | None, _also("What 'gpualloc simulate --timeline' wrote.")] = None,
    serve: Annotated[bool, _serving("Show the page while a run goes on, at an address that only this machine and its token open.")] = False,
    port: Annotated[int, _serving("Port to serve on (0: a free one).")] = 0,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="PATH", help="Results file (else $GPUALLOC_STORE, else ~/.local/share/gpualloc/results.sqlite)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written, as JSON.")] = False,
) -> None:
    """Report what was found: one HTML file with the answer on top and every figure below, in English or Japanese.

    The file needs no network: send it, print it, open it from disk.

    With --serve it is shown in a browser instead and follows a run that is going on; Ctrl-C ends it.

    Examples:
      gpualloc report -o report.html --price-per-hour '2.50 EUR'
      gpualloc report 3 4 --lang ja -o report_ja.html
      gpualloc report --profile profile.json --plan plan.json
      gpualloc report exported.json -o - > report.html
      gpualloc report --serve
    """
    if serve and ctx.get_parameter_source("output").name != "DEFAULT":  # type: ignore[union-attr]
        raise UsageError("--serve shows the page instead of writing it; leave out --output or --serve")
    if not _PORT_RANGE[0] <= port <= _PORT_RANGE[1]:
        raise UsageError(f"--port {port} is out of range; choose {_PORT_RANGE[0]} to {_PORT_RANGE[1]:,}, 0 for a free one")
    if min_efficiency is not None and not 0 < min_efficiency <= 1:
        raise UsageError(f"--min-efficiency {min_efficiency:g} is out of range; choose a fraction above 0, up to 1")
    from gpualloc.report import encode, render

    def make() -> ReportInputs:
        return _inputs(
            runs or ["latest"],
            store=store,
            price_per_hour=price_per_hour,
            min_efficiency=min_efficiency,
            profile=profile,
            rehearsal=rehearsal,
            quality=quality or [],
            watch=watch,
            forecast=forecast,
            advice=advice,
            plan=plan,
            simulation=simulation,
            timeline=timeline,
        )

    with show_working("reading"):
        inputs = make()
    for problem in inputs.problems:
        _say(f"gpualloc: warning: {problem}")
    if serve:
        _serve(make, lang, port)
        return
    with show_working("drawing the page"):
        page = encode(render(inputs, language=lang))
    _write(page, output, inputs, as_json=as_json)


def _inputs(
    names: list[str],
    *,
    store: Path | None,
    price_per_hour: str | None,
    min_efficiency: float | None,
    profile: Path | None,
    rehearsal: Path | None,
    quality: list[Path],
    watch: Path | None,
    forecast: Path | None,
    advice: Path | None,
    plan: Path | None,
    simulation: Path | None,
    timeline: Path | None,
) -> ReportInputs:
    import shlex
    from datetime import datetime, timezone

    from gpualloc.findings import DEFAULT_MIN_EFFICIENCY
    from gpualloc.quality.records import read_experiment
    from gpualloc.report import ReportInputs, loading
    from gpualloc.report.later_stages import AdviceFile, ForecastFile, PlanFile, SimulationFile, TimelineFile
    from gpualloc.report.rehearsal_file import RehearsalFile
    from gpualloc.store import default_store_path
    from gpualloc.watching.durations import parse_price

    price = None if price_per_hour is None else parse_price("--price-per-hour", price_per_hour)
    bar = DEFAULT_MIN_EFFICIENCY if min_efficiency is None else min_efficiency
    studies, problems = loading.load_studies(names, store or default_store_path(), min_efficiency=bar)
    found_profile, trace = (None, None) if profile is None else loading.read_profile(profile)

    def later(model: type, path: Path | None, option: str, writer: str) -> object:
        return None if path is None else loading.read_model(model, path, option, writer=writer)

    words = [word.encode("utf-8", "backslashreplace").decode() for word in sys.argv[1:]]
    return ReportInputs(
        studies=studies,
        made_at_utc=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        command=shlex.join(["gpualloc", *(words if words[:1] == ["report"] else ["report"])]),
        problems=tuple(problems),
        price=price,
        profile=found_profile,
        trace=trace,
        experiments=tuple(map(read_experiment, quality)),
        rehearsal=later(RehearsalFile, rehearsal, "--rehearsal", "gpualloc rehearse --json"),  # type: ignore[arg-type]
        watched=None if watch is None else loading.read_watched(watch, price),
        forecast=later(ForecastFile, forecast, "--forecast", "gpualloc forecast predict --json"),  # type: ignore[arg-type]
        advice=later(AdviceFile, advice, "--advice", "gpualloc advise --json"),  # type: ignore[arg-type]
        plan=later(PlanFile, plan, "--plan", "gpualloc plan"),  # type: ignore[arg-type]
        simulation=later(SimulationFile, simulation, "--simulation", "gpualloc simulate --json"),  # type: ignore[arg-type]
        timeline=later(TimelineFile, timeline, "--timeline", "gpualloc simulate --timeline"),  # type: ignore[arg-type]
    )


def _write(page: bytes, output: Path, inputs: ReportInputs, *, as_json: bool) -> None:
    if str(output) == "-":
        if as_json:
            raise UsageError("--json and -o - both write to stdout; name a file with -o")
        sys.stdout.flush()
        sys.stdout.buffer.write(page)
        return
    try:
        write_whole(output, page)
    except OSError as error:
        raise GpuallocError(f"{output} cannot be written: {error.strerror}; choose another file with -o") from error
    names = [run.name for study in inputs.studies for run in study.runs]
    num_rows = sum(len(run.measurements) for study in inputs.studies for run in study.runs)
    if as_json:
        from gpualloc.cli.tables import print_json

        print_json({"path": str(output), "num_bytes": len(page), "runs": names, "num_measurements": num_rows})
    else:
        runs = f"run{'s' if len(names) > 1 else ''} {', '.join(names)}"
        _say(f"{num_rows} measurements of {runs} written to {output} ({len(page) / 1000:,.0f} kB)")


def _serve(make: object, language: str, port: int) -> None:
    from gpualloc.bench.interruption import Interrupted, interruptible
    from gpualloc.report.server import ReportServer

    assert callable(make)
    with ReportServer(make, language=language, port=port) as server:
        print(server.address, flush=True)
        _say("the address opens on this machine alone and only with its token; end with Ctrl-C")
        try:
            with interruptible():
                server.serve_forever()
        except Interrupted as interruption:
            _say("ended")
            if interruption.exit_code != 130:
                raise typer.Exit(interruption.exit_code) from None


def _say(text: str) -> None:
    from gpualloc.cli.tables import printable

    print(printable(text), file=sys.stderr, flush=True)
