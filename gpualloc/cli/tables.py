"""What every command prints with: a console, text that cannot break a line, tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gpualloc.cli import formats

PIPED_WIDTH = 120  # columns, where no terminal says otherwise


def output_console() -> Console:
    """A console on stdout that takes text as it is: no markup, no highlighting. It turns tables into CSV or Markdown if that was chosen."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    kind = Console if formats.chosen() == "table" else formats.FormattedConsole
    return kind(width=width, markup=False, highlight=False, emoji=False)


def json_text(data: Any) -> str:
    """Strict JSON: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def print_json(data: Any) -> None:
    """Strict JSON on stdout."""
    print(json_text(data))


def printable(text: str) -> str:
    """The text on one line, with control characters and broken UTF-8 written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.splitlines()))


def text_table(*headers: str, right: Sequence[str] = (), fixed: Sequence[str] = ()) -> Table:
    """An unframed table; columns named in `right` are right-aligned, these and `fixed` ones never wrap."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        is_fixed = header in right or header in fixed
        table.add_column(header, justify="right" if header in right else "left", no_wrap=is_fixed, overflow="fold")
    return table


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, (list, tuple)) else data
