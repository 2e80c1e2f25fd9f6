"""Tables as CSV or Markdown: what a command prints to its console is turned into the format chosen with --format."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")
_chosen = "table"


def choose(name: str) -> None:
    """table, csv or markdown, for the rest of this process."""
    global _chosen
    _chosen = name


def chosen() -> str:
    return _chosen


class TableText(Text):
    """A table that is in its format already."""


class FormattedConsole(Console):
    """Prints tables in the chosen format. As CSV, what is not a table goes to stderr; tables have an empty line between them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._num_tables = 0

    def print(self, *objects: Any, **options: Any) -> None:
        for each in objects or ("",):
            if isinstance(each, Group):
                self.print(*each.renderables)
            elif isinstance(each, Table):
                rows = zip(*(column.cells for column in each.columns), strict=True)
                self._print_table(table_text([str(column.header) for column in each.columns], rows))
            elif isinstance(each, TableText):
                self._print_table(each)
            else:
                self._print_words(str(getattr(each, "renderable", each)))

    def _print_table(self, table: TableText) -> None:
        if self._num_tables and _chosen == "csv":
            super().print()
        self._num_tables += 1
        super().print(Text(table.plain), soft_wrap=True)
        if _chosen == "markdown":
            super().print()

    def _print_words(self, text: str) -> None:
        if _chosen == "csv":
            if text.strip():
                print(text.strip(), file=sys.stderr)
        elif text.strip():
            super().print(Text(_escaped(" ".join(text.split()))), soft_wrap=True)
            super().print()


def table_text(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> TableText:
    """The table in the chosen format, all columns, whatever the width of the terminal."""
    plain = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    if _chosen == "markdown":
        lines = [headers, ["---"] * len(headers), *plain]
        return TableText("\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([[cell.replace(",", "") if _THOUSANDS.fullmatch(cell) else cell for cell in row] for row in plain])
    return TableText(written.getvalue().rstrip("\n"))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
