"""`gpualloc watch`: samples GPUs, host and processes while jobs run; `watch report` says what was wasted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpualloc.cli.settings_file import handed_down
from gpualloc.errors import GpuallocError, UsageError

if TYPE_CHECKING:
    from gpualloc.watching.waste import Price, WasteRule

app = typer.Typer(invoke_without_command=True)

Store = Annotated[
    Path | None,
    typer.Option("--store", metavar="PATH", help="Watch file (else $GPUALLOC_WATCH_STORE, else watch.sqlite beside the results)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: one line a device and sample.")]
IdleBelow = Annotated[str, typer.Option("--idle-below", metavar="PERCENT", help="A GPU below this utilisation is idle.")]
Bar = Annotated[str, typer.Option("--bar", metavar="PERCENT", help="A GPU below this utilisation is low.")]
For = Annotated[str, typer.Option("--for", metavar="TIME", help="It is flagged when it stays there this long.")]
PricePerHour = Annotated[str | None, typer.Option("--price-per-hour", metavar="PRICE", help="Of one GPU, with its currency: '2.50 EUR'.")]


@app.callback()
def watch(
    ctx: typer.Context,
    interval: Annotated[str, typer.Option(metavar="TIME", help="Time between samples.")] = "5s",
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="End after this time (default: with Ctrl-C).")] = None,
    once: Annotated[bool, typer.Option("--once", help="Take one sample, of half a second, and end.")] = False,
    pid: Annotated[
        list[int] | None, typer.Option(metavar="NUMBER", help="Watch this job and all it starts on the host, too; end with it. Repeatable.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="LIST", help="Only these GPUs, by index or UUID (default: all).")] = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="auto: the GPUs where there are any; cpu: the host alone.")
    ] = "auto",
    idle_below: IdleBelow = "5",
    bar: Bar = "40",
    for_: For = "10m",
    price_per_hour: PricePerHour = None,
    keep_days: Annotated[str, typer.Option(metavar="DAYS", help="Delete what is older from the file; 'all' deletes nothing.")] = "14",
    store: Store = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Show only, keep nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Watch GPUs and the processes on them: utilisation, memory, power, clocks; keep it, and flag GPUs that idle.

    Runs until Ctrl-C or SIGTERM, which is a clean end: exit 0. Every sample is on disk before the next one is taken.

    Examples:
      gpualloc watch
      gpualloc watch --interval 1s --duration 10m --price-per-hour '2.50 EUR'
      gpualloc watch --pid 4711 --json > samples.jsonl
      gpualloc watch --once --no-store
      gpualloc watch report --since 24h
    """
    if ctx.invoked_subcommand is not None:  # given here, the options hold for the report, unless it has its own
        shared = {"store": store, "as_json": as_json, "idle_below": idle_below, "bar": bar, "for_": for_, "price_per_hour": price_per_hour}
        ctx.default_map = handed_down(ctx, **shared)
        return
    if store is not None and no_store:
        raise UsageError("--store and --no-store exclude each other; leave one out")
    if once and duration is not None:
        raise UsageError("--once and --duration exclude each other; leave one out")
    from gpualloc.cli.watch_run import WatchOptions, run
    from gpualloc.store import default_watch_store_path
    from gpualloc.watching.durations import parse_duration_s

    rule, price = _rule_and_price(idle_below, bar, for_, price_per_hour)
    options = WatchOptions(
        interval_s=parse_duration_s("--interval", interval, at_least_s=0.1),
        duration_s=None if duration is None else parse_duration_s("--duration", duration),
        is_once=once,
        pids=tuple(pid or ()),
        gpus=_gpus(gpu),
        device=device,
        rule=rule,
        price=price,
        keep_days=_keep_days(keep_days),
        store_path=None if no_store else store or default_watch_store_path(),
        as_json=as_json,
    )
    if not run(options):
        raise typer.Exit(1)


@app.command("report")
def report(
    since: Annotated[str, typer.Option(metavar="TIME", help="How far back to look.")] = "24h",
    idle_below: IdleBelow = "5",
    bar: Bar = "40",
    for_: For = "10m",
    price_per_hour: PricePerHour = None,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report what was watched: utilisation of each GPU, and the hours and the money wasted, by GPU, process and user.

    Examples:
      gpualloc watch report
      gpualloc watch report --since 7d --price-per-hour '2.50 EUR'
      gpualloc watch report --bar 60 --for 30m --json
    """
    import time
    from dataclasses import asdict
    from datetime import datetime, timezone

    from gpualloc.cli.tables import output_console, print_json, printable
    from gpualloc.cli.watch_report import print_report
    from gpualloc.store import default_watch_store_path
    from gpualloc.watching import WatchStore, find_waste
    from gpualloc.watching.durations import parse_duration_s

    since_s = parse_duration_s("--since", since)
    rule, price = _rule_and_price(idle_below, bar, for_, price_per_hour)
    path = store or default_watch_store_path()
    now_unix_s = time.time()

    def utc(unix_s: float | None) -> str | None:
        return None if unix_s is None else datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="seconds")

    with WatchStore(path, create=False) as opened:
        found = find_waste(opened.samples(since_unix_s=now_unix_s - since_s), rule, price)
        num_damaged = opened.num_damaged
        watches = opened.watches()
    if num_damaged:
        print(f"gpualloc: warning: {num_damaged} damaged samples in {printable(str(path))} are left out", file=sys.stderr)
    if not found.devices:
        newest = utc(max((row.last_sample_unix_s or 0.0 for row in watches), default=None))
        when = f"the newest is of {newest}; look further back with --since" if newest else "run gpualloc watch"
        raise GpuallocError(f"no samples of the last {since} in {path}: {when}")
    recent = [row for row in watches if (row.last_sample_unix_s or 0.0) >= now_unix_s - since_s]
    if as_json:
        data = asdict(found)
        for one in data["devices"]:
            one.update(first_utc=utc(one["first_unix_s"]), last_utc=utc(one["last_unix_s"]))
            for span in one["spans"]:
                span.update(start_utc=utc(span["start_unix_s"]), end_utc=utc(span["end_unix_s"]))
        print_json(
            {"since_utc": utc(now_unix_s - since_s), "until_utc": utc(now_unix_s), **data, "watches": [asdict(row) for row in recent]}
        )
        return
    print_report(found, output_console())


def _rule_and_price(idle_below: str, bar: str, for_: str, price: str | None) -> tuple[WasteRule, Price | None]:
    from gpualloc.watching.durations import parse_duration_s, parse_price
    from gpualloc.watching.waste import WasteRule

    rule = WasteRule(
        idle_below_percent=_percent("--idle-below", idle_below),
        bar_percent=_percent("--bar", bar),
        for_s=parse_duration_s("--for", for_, at_least_s=1.0),
    )
    if rule.idle_below_percent > rule.bar_percent:
        raise UsageError(f"--idle-below {idle_below} is above --bar {bar}; an idle GPU is below both")
    return rule, None if price is None else parse_price("--price-per-hour", price)


def _percent(option: str, text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise UsageError(f"{option} {text!r} is out of range; choose a percentage above 0, up to 100")
    return value


def _keep_days(text: str) -> float | None:
    if text == "all":
        return None
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 < days <= 36500:
        raise UsageError(f"--keep-days {text!r} is out of range; choose a number of days above 0, or 'all'")
    return days


def _gpus(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if "" in names:
        raise UsageError(f"--gpu {text!r} has an empty entry; give indices or UUIDs with single commas between")
    return names
