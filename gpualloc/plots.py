"""Figures written to files. Matplotlib (`pip install 'gpualloc[plots]'`) is loaded when the first one is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpualloc.errors import GpuallocError, UsageError

SUFFIXES = (".png", ".svg", ".pdf")
_PANEL_INCHES = (6.0, 4.4)
_DPI = 150
# Okabe and Ito 2008, "Color Universal Design": told apart by all; with a marker of its own each.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series: y over x, with the interval or range of each y (equal to it where there is none)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    reference_y: float | None = None  # a dashed line across
    reference_label: str = ""
    is_banded: bool = False  # low to high as a band: for curves of many points


def check_plot_path(path: Path) -> None:
    """Refuses, before anything is measured, what could not be drawn later.

    Raises:
        UsageError: of another ending, or matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {str(path)!r} does not end in {', '.join(SUFFIXES)}; name a file that does")
    with _matplotlib():
        pass


def draw(panels: Sequence[Sequence[Panel]], path: Path) -> None:
    """Rows of panels as one figure.

    Raises:
        UsageError: as `check_plot_path`.
        GpuallocError: the file cannot be written.
    """
    check_plot_path(path)
    with _matplotlib() as figure_type:
        num_columns = max(map(len, panels))
        figure = figure_type(figsize=(_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), num_columns, squeeze=False)
        for row, axes_row in zip(panels, axes, strict=True):
            for index, each in enumerate(axes_row):
                if index < len(row):
                    _draw_panel(row[index], each)
                else:
                    each.set_axis_off()
        try:
            figure.savefig(path, dpi=_DPI)
        except OSError as error:
            raise GpuallocError(f"--plot {path}: cannot be written: {error.strerror}; choose another file") from error


@contextlib.contextmanager
def _matplotlib() -> Iterator[Any]:
    """Gives the class of figures, which needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib: {error}; install it with: pip install 'gpualloc[plots]'") from error
    yield Figure


def _draw_panel(panel: Panel, axes: Any) -> None:
    for index, line in enumerate(panel.lines):
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        if panel.is_banded:
            axes.plot(line.x, line.y, color=color, label=line.label, linewidth=1.5)
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
        else:
            below = [max(0.0, y - low) for y, low in zip(line.y, line.low, strict=True)]
            above = [max(0.0, high - y) for y, high in zip(line.y, line.high, strict=True)]
            style = "-" if index < len(_COLORS) else "--"
            axes.errorbar(line.x, line.y, yerr=(below, above), color=color, marker=marker, linestyle=style, capsize=3, label=line.label)
    if panel.reference_y is not None:
        axes.axhline(panel.reference_y, color="#555555", linestyle="--", linewidth=1, label=panel.reference_label)
    if not panel.is_banded:
        axes.set_xticks(sorted({x for line in panel.lines for x in line.x}))
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
