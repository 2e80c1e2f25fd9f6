"""One run of `gpualloc watch`: sample, record, show, until it ends; then the sum."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.live import Live
from rich.text import Text

from gpualloc.cli.tables import output_console, printable
from gpualloc.cli.watch_report import print_report
from gpualloc.cli.watch_tables import device_label, live_view, sample_line, state_of
from gpualloc.watching.clock import Clock
from gpualloc.watching.durations import duration_text
from gpualloc.watching.ledger import DeviceLedger, Ledger
from gpualloc.watching.recorder import Recorder
from gpualloc.watching.sampler import Sampler
from gpualloc.watching.samples import DeviceSample
from gpualloc.watching.waste import Price, WasteRule

_ONCE_S = 0.5  # what a single sample speaks for


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What was asked."""

    interval_s: float
    duration_s: float | None
    is_once: bool
    pids: tuple[int, ...]
    gpus: tuple[str, ...]
    device: str
    rule: WasteRule
    price: Price | None
    keep_days: float | None
    store_path: Path | None  # None: keep nothing
    as_json: bool


class _View(Protocol):
    def show(self, samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], problem: str | None) -> None: ...


def run(options: WatchOptions) -> bool:
    """Watches until the end; False when samples could not be kept.

    Raises:
        UsageError, NoGpusError, StoreError: before the first sample.
    """
    sampler = Sampler(device=options.device, gpus=options.gpus, pids=options.pids, interval_s=options.interval_s)
    ledger, recorder = Ledger(options.rule), None
    with contextlib.ExitStack() as stack:
        stack.callback(sampler.close)
        if options.store_path is not None:
            recorder = Recorder(options.store_path, host=sampler.host, interval_s=options.interval_s, keep_days=options.keep_days)
            stack.callback(recorder.close)
        if options.is_once:
            sampler.read()
            time.sleep(_ONCE_S)
            samples = sampler.read()
            if recorder is not None:
                recorder.record(samples, sampler.overhead())
            _show_once(samples, [ledger.add(sample) for sample in samples], options)
        else:
            _print_start(sampler, options)
            clock = Clock(interval_s=options.interval_s, duration_s=options.duration_s)
            with clock.running() as beats, _view(options) as view:
                for _ in beats:
                    samples = sampler.read()
                    if recorder is not None:
                        recorder.record(samples, sampler.overhead())
                    view.show(samples, [ledger.add(sample) for sample in samples], recorder.problem if recorder else None)
                    if sampler.have_jobs_ended:
                        break
            _print_end(sampler, recorder, ledger, options)
    if recorder is not None and recorder.num_waiting + recorder.num_dropped:
        lost = recorder.num_waiting + recorder.num_dropped
        print(f"gpualloc: error: {lost} samples were not kept: {printable(recorder.problem or 'too many')}", file=sys.stderr)
        return False
    return True


def _print_start(sampler: Sampler, options: WatchOptions) -> None:
    what = sampler.describe()
    until = "" if options.duration_s is None else f" for {duration_text(options.duration_s)}"
    where = "kept nowhere" if options.store_path is None else f"kept in {printable(str(options.store_path))}"
    print(f"watching {printable(what)} every {duration_text(options.interval_s)}{until}, {where}; end with Ctrl-C", file=sys.stderr)
    if sampler.why_no_gpus is not None:
        print(f"gpualloc: warning: no GPU is watched: {printable(sampler.why_no_gpus)}", file=sys.stderr)
        if not options.pids:
            print("to see processes, name a job with --pid", file=sys.stderr)


def _print_end(sampler: Sampler, recorder: Recorder | None, ledger: Ledger, options: WatchOptions) -> None:
    overhead = sampler.overhead()
    if overhead.percent_of_core is not None:
        kept = "" if recorder is None else f"; {recorder.num_recorded} samples kept in {printable(str(recorder.path))}"
        print(
            f"watched for {duration_text(overhead.elapsed_s)}, which took {overhead.percent_of_core:.2f} % of a core and "
            f"{overhead.rss_bytes / 1e6:.0f} MB{kept}",
            file=sys.stderr,
        )
    if not options.as_json:
        console = output_console()
        console.print()
        print_report(ledger.report(options.price), console)


def _show_once(samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], options: WatchOptions) -> None:
    if options.as_json:
        _JsonView().show(samples, ledgers, None)
        return
    console = output_console()
    view = live_view(samples, ledgers, options.rule, (), width=console.width, max_rows=1000)
    console.print(view, soft_wrap=True)


@contextlib.contextmanager
def _view(options: WatchOptions) -> Iterator[_View]:
    if options.as_json:
        yield _JsonView(options.rule)
    elif not sys.stdout.isatty():
        yield _LinesView(options.rule)
    else:
        console = output_console()
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            yield _LiveView(live, options)


class _LiveView:
    """A table that is drawn anew with every sample."""

    def __init__(self, live: Live, options: WatchOptions) -> None:
        self._live, self._options = live, options

    def show(self, samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], problem: str | None) -> None:
        console = self._live.console
        notes = [Text(f"{samples[0].time_utc[:19]}Z, every {duration_text(self._options.interval_s)}; Ctrl-C ends", style="dim")]
        if problem is not None:
            notes.append(Text(printable(problem), style="bold red"))
        view = live_view(samples, ledgers, self._options.rule, notes, width=console.width, max_rows=console.height)
        self._live.update(view, refresh=True)


class _Flags:
    """Warnings on stderr, each when it begins."""

    def __init__(self, rule: WasteRule | None) -> None:
        self._rule = rule
        self._flagged: dict[str, str] = {}
        self._problem: str | None = None

    def warn(self, samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], problem: str | None) -> None:
        if problem is not None and self._problem is None:
            print(f"gpualloc: warning: {printable(problem)}; watching goes on and what is not kept is offered again", file=sys.stderr)
        self._problem = problem
        if self._rule is None:
            return
        has_gpus = any(sample.kind != "cpu" for sample in samples)
        for sample, ledger in zip(samples, ledgers, strict=True):
            state, is_flagged = state_of(ledger, sample, self._rule, is_host_with_gpus=has_gpus)
            flagged = state if is_flagged else ""
            before = self._flagged.get(sample.device_uuid, "")
            if flagged not in ("", before) and before != "idle":  # after idling, the mean stays low for a while
                label = device_label(sample.kind, sample.device_index, sample.device_uuid)
                percent = self._rule.idle_below_percent if flagged == "idle" else self._rule.bar_percent
                message = f"{label} is {flagged}: below {percent:g} % for {duration_text(self._rule.for_s)}"
                print(f"gpualloc: warning: {message}", file=sys.stderr)
            self._flagged[sample.device_uuid] = flagged


class _JsonView:
    def __init__(self, rule: WasteRule | None = None) -> None:
        self._flags = _Flags(rule)

    def show(self, samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], problem: str | None) -> None:
        for sample in samples:
            print(json.dumps(sample.to_json(), allow_nan=False))
        sys.stdout.flush()
        self._flags.warn(samples, ledgers, problem)


class _LinesView:
    def __init__(self, rule: WasteRule) -> None:
        self._flags = _Flags(rule)

    def show(self, samples: Sequence[DeviceSample], ledgers: Sequence[DeviceLedger], problem: str | None) -> None:
        for sample in samples:
            print(sample_line(sample))
        sys.stdout.flush()
        self._flags.warn(samples, ledgers, problem)
