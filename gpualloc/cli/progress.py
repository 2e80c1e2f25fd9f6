"""Progress on stderr: a bar with the time left on a terminal, a line for each finished part elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_FEW_LINES_S = 10.0  # at least, between two lines that are told in a file
_REFRESH_HZ = 2.0
_LEFT_WIDTH = len("about 59 min left")


@dataclass(kw_only=True)
class Pace:
    """How long the parts of a command took against what was expected of them, and so how long the rest will take.

    Args:
        weights: of each part: expected seconds, or how they compare.
        are_seconds: whether they say something before a part has ended.
        clock_s: now.
    """

    weights: Sequence[float]
    are_seconds: bool
    clock_s: Callable[[], float] = time.monotonic
    num_done: int = 0
    _worked_s: float = 0.0  # on parts that were begun, not on those that were found done
    _worked_weight: float = 0.0
    _begun_s: float | None = None  # the part under way

    def begin(self) -> None:
        self._begun_s = self.clock_s()

    def end(self) -> None:
        if self._begun_s is not None:
            self._worked_s += self.clock_s() - self._begun_s
            self._worked_weight += self.weights[self.num_done]
        self.num_done, self._begun_s = self.num_done + 1, None

    def left_s(self) -> float | None:
        """Seconds; None where nothing tells, and at the end."""
        if self._worked_weight > 0:
            rate = self._worked_s / self._worked_weight
        elif self.are_seconds:
            rate = 1.0
        else:
            return None
        if self.num_done == len(self.weights):
            return None
        present, *later = self.weights[self.num_done :]
        spent_s = 0.0 if self._begun_s is None else self.clock_s() - self._begun_s
        return max(rate * present - spent_s, 0.0) + rate * sum(later)


def left_text(seconds: float | None) -> str:
    """Such as "about 3 min left"; empty where nobody knows."""
    if seconds is None:
        return ""
    if seconds < 1:
        return "any moment"
    if seconds < 59.5:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h left"


class Parts:
    """What a command tells of its parts, which it works through in order."""

    def begin(self, name: str) -> None:
        """The next part is under way."""

    def end(self, result: str) -> None:
        """It is done, and this came of it."""


@contextmanager
def show_parts(weights: Sequence[float], *, are_seconds: bool = False, are_short: bool = False) -> Iterator[Parts]:
    """
    Args:
        weights: as for `Pace`.
        are_short: parts of seconds, of which not every one is worth a line in a file.
    """
    if not sys.stderr.isatty():
        yield _Lines(len(weights), gap_s=_FEW_LINES_S if are_short else 0.0)
        return
    from rich.progress import BarColumn, MofNCompleteColumn

    pace = Pace(weights=weights, are_seconds=are_seconds)
    left = _live_column(lambda task: left_text(pace.left_s()).ljust(_LEFT_WIDTH), is_whole=True)
    name = _live_column(lambda task: task.description, is_whole=False)
    with _bar(BarColumn(), MofNCompleteColumn(), _elapsed(), left, name) as bar:
        yield _Bar(bar, bar.add_task("", total=len(weights)), pace)


@contextmanager
def show_working(what: str) -> Iterator[None]:
    """Of work that cannot tell how far it is: on a terminal the time it has taken, elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import SpinnerColumn, TextColumn

    with _bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), _elapsed()) as bar:
        bar.add_task(what, total=None)
        yield


class _Lines(Parts):
    def __init__(self, total: int, *, gap_s: float) -> None:
        self._total, self._gap_s = total, gap_s
        self._num_done = 0
        self._told_s = time.monotonic()

    def end(self, result: str) -> None:
        self._num_done += 1
        now_s = time.monotonic()
        if now_s - self._told_s < self._gap_s and self._num_done < self._total:
            return
        self._told_s = now_s
        from gpualloc.cli.tables import printable

        print(printable(f"[{self._num_done}/{self._total}] {result}"), file=sys.stderr, flush=True)


class _Bar(Parts):
    def __init__(self, bar: Any, task: Any, pace: Pace) -> None:
        self._bar, self._task, self._pace = bar, task, pace

    def begin(self, name: str) -> None:
        from gpualloc.cli.tables import printable

        self._pace.begin()
        self._bar.update(self._task, description=printable(name))

    def end(self, result: str) -> None:
        self._pace.end()
        self._bar.update(self._task, completed=self._pace.num_done)


def _bar(*columns: Any) -> Any:
    """Wiped at its end. What is printed meanwhile goes above it."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=_REFRESH_HZ)


def _elapsed() -> Any:
    from rich.progress import TimeElapsedColumn
    from rich.table import Column

    return TimeElapsedColumn(table_column=Column(no_wrap=True))


def _live_column(text: Callable[[Any], str], *, is_whole: bool) -> Any:
    """Asked at every refresh. A line too narrow for all cuts the others, not those that are whole."""
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Live(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(text(task), no_wrap=True, overflow="ellipsis")

    return Live(table_column=Column(no_wrap=is_whole))
