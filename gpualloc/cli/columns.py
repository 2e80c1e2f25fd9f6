"""Tables whose least important columns leave first where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from gpualloc.cli import formats

_GAP = "  "


@dataclass(frozen=True)
class Column:
    header: str
    importance: float  # the lowest leaves first where space is short
    is_left: bool = False


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    style: str = ""


def table_lines(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Text]:
    """A header and a line for each row; columns that do not fit are left out, and so are those without a figure."""
    if formats.chosen() != "table":
        return [formats.table_text([column.header for column in columns], [row.cells for row in rows])]
    widths = [max(len(column.header), *(len(row.cells[place]) for row in rows)) for place, column in enumerate(columns)]
    filled = [place for place in range(len(columns)) if any(row.cells[place] not in ("", "-") for row in rows)]
    shown: list[int] = []
    room = width + len(_GAP)
    for place in sorted(filled, key=lambda place: -columns[place].importance):
        if not shown:
            widths[place] = min(widths[place], max(len(columns[place].header), width // 2))
        elif columns[place].is_left and columns[place].importance >= 9:
            widths[place] = max(len(columns[place].header), min(widths[place], width // 3))
        room -= widths[place] + len(_GAP)
        if room < 0:
            break
        shown.append(place)
    shown.sort()

    def line(cells: Sequence[str], style: str) -> Text:
        parts = []
        for place in shown:
            cell = cells[place] if len(cells[place]) <= widths[place] else cells[place][: widths[place] - 1] + "…"
            parts.append(cell.ljust(widths[place]) if columns[place].is_left else cell.rjust(widths[place]))
        return Text(_GAP.join(parts).rstrip(), style=style)

    return [line([column.header for column in columns], "dim"), *(line(row.cells, row.style) for row in rows)]


def number_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def gib_text(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**30:.2f}"
