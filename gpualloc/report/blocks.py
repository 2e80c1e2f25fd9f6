"""What a page is made of, in the reader's language and before it becomes HTML: sections of figures, tables and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

MAX_ROWS = 500  # of a table; raw rows are not bound by it. A page of 10,000 measurements opens half a second sooner
Mood = Literal["", "good", "bad", "unsure", "muted"]


@dataclass(frozen=True)
class Cell:
    """A table's cell. Its mood is shown by a sign as well as by colour."""

    text: str
    mood: Mood = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    label: str
    is_number: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_folded: bool = False  # shown on demand
    num_more: int = 0  # rows left out


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    label: str
    swatch: Markup


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, drawn once for wide and once for narrow screens, and its figures as a table."""

    title: str
    caption: str  # what to see in it, in a sentence
    wide: Markup
    narrow: Markup
    legend: tuple[LegendEntry, ...]
    table: Table
    command: str | None = None  # what makes its figures


@dataclass(frozen=True, kw_only=True)
class Note:
    text: str
    mood: Mood = ""
    language: str | None = None  # where it is not the page's


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Commands to copy, each with what it is for."""

    lines: tuple[tuple[str, str], ...]  # (what for, command)


@dataclass(frozen=True, kw_only=True)
class RawRows:
    """Very long tables: the first rows are in the page, all of them in its data, from which a script shows pages of them."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    num_shown: int  # without a script
    note: str  # how to get all of them without one


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a section would need: stands for the whole section and is told in one list with the others."""

    text: str
    command: str


Block = Figure | Table | Note | Commands | RawRows | Missing


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading of the engineer's part."""

    key: str  # its anchor
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large figure for the manager."""

    label: str
    value: str
    detail: str
    mood: Mood = ""


def table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, numbers: str = "", is_folded: bool = False
) -> Table:
    """A table from plain texts.

    Args:
        numbers: a letter for each column, "n" where it holds numbers: "..nn".
    """
    columns = tuple(Column(label=header, is_number=numbers[place : place + 1] == "n") for place, header in enumerate(headers))
    shown = rows[:MAX_ROWS]
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in shown)
    return Table(caption=caption, columns=columns, rows=cells, is_folded=is_folded, num_more=len(rows) - len(shown))
