"""Rows and queries from CSV files. An error names the file, the line and the column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpualloc.errors import UsageError
from gpualloc.scaling.records import StepQuery, StepRow

QUERY_COLUMNS = ("cluster", "model", "num_nodes", "num_gpus", "per_device_batch_size")
OPTIONAL_COLUMNS = ("placement", "image_size_px", "image_size", "sequence_length", "precision", "gradient_bytes", "input_samples_per_s")
ROW_COLUMNS = (*QUERY_COLUMNS, "step_time_s")
ROW_OPTIONAL_COLUMNS = ("sync_time_s", "source")
_LARGEST_COUNT = 10**9


def read_rows(path: Path) -> list[StepRow]:
    """The measured rows of a CSV file.

    Columns: cluster, model, num_nodes, num_gpus, per_device_batch_size, step_time_s; where present placement, sync_time_s,
    image_size_px (or image_size), sequence_length, precision, gradient_bytes, input_samples_per_s, source ("measured" or "rehearsed").
    Other columns and their order do not matter.

    Raises:
        UsageError: a column is missing, a cell cannot be read, or there are no rows.
    """
    rows = []
    for cells in _lines(path, ROW_COLUMNS):
        step_time_s = cells.positive("step_time_s")
        sync_time_s = cells.at_least_0("sync_time_s")
        if sync_time_s is not None and sync_time_s > step_time_s:
            raise cells.error("sync_time_s", f"is longer than the step of {step_time_s:g} s that it is a part of")
        source = cells.text("source") or "measured"
        if source not in ("measured", "rehearsed"):
            raise cells.error("source", "is neither 'measured' nor 'rehearsed'")
        rows.append(StepRow(**_query_fields(cells), step_time_s=step_time_s, sync_time_s=sync_time_s, source=source))  # type: ignore[arg-type]
    return rows


def read_queries(path: Path) -> list[StepQuery]:
    """The queries of a CSV file: the columns of `read_rows` without times.

    Raises:
        UsageError: as `read_rows`.
    """
    return [StepQuery(**_query_fields(cells)) for cells in _lines(path, QUERY_COLUMNS)]


class _Cells:
    """One line of a file."""

    def __init__(self, path: Path, line: int, values: Mapping[str, str]) -> None:
        self._path, self._line, self._values = path, line, values

    def text(self, column: str) -> str | None:
        return (self._values.get(column) or "").strip() or None

    def name(self, column: str) -> str:
        text = self.text(column)
        if text is None:
            raise self.error(column, "is empty; a name is needed")
        return text

    def count(self, column: str, *, is_needed: bool = True) -> int | None:
        value = self._number(column, is_needed=is_needed)
        if value is not None and (value != int(value) or not 1 <= value <= _LARGEST_COUNT):
            raise self.error(column, f"is not a whole number from 1 to {_LARGEST_COUNT:,}")
        return None if value is None else int(value)

    def positive(self, column: str, *, is_needed: bool = True) -> Any:
        value = self._number(column, is_needed=is_needed)
        if value is not None and value <= 0:
            raise self.error(column, "is not above 0")
        return value

    def at_least_0(self, column: str) -> float | None:
        value = self._number(column, is_needed=False)
        if value is not None and value < 0:
            raise self.error(column, "is negative")
        return value

    def error(self, column: str, problem: str) -> UsageError:
        return UsageError(f"{self._path}, line {self._line}, column {column}: {self._values.get(column)!r} {problem}")

    def _number(self, column: str, *, is_needed: bool) -> float | None:
        text = self.text(column)
        if text is None and not is_needed:
            return None
        try:
            value = float(text or "")
        except ValueError:
            raise self.error(column, "is not a number") from None
        if not math.isfinite(value):
            raise self.error(column, "is not a finite number")
        return value


def _lines(path: Path, needed: tuple[str, ...]) -> Iterator[_Cells]:
    num_lines = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in needed if name not in header]
            if missing:
                raise UsageError(f"{path}, line 1: no column {', '.join(missing)}; seen are: {', '.join(header) or 'none'}")
            doubled = sorted({name for name in header if name and header.count(name) > 1})
            if doubled:
                raise UsageError(f"{path}, line 1: column {', '.join(doubled)} is there more than once; keep one")
            reader.fieldnames = header
            for values in reader:
                if None in values or None in values.values():
                    raise UsageError(f"{path}, line {reader.line_num}: has not as many cells as the header's {len(header)}")
                num_lines += 1
                yield _Cells(path, reader.line_num, values)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; name a CSV file with a header line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    if not num_lines:
        raise UsageError(f"{path} has a header and no rows; add one line for each step")


def _query_fields(cells: _Cells) -> dict[str, Any]:
    num_nodes, num_gpus = cells.count("num_nodes"), cells.count("num_gpus")
    assert num_nodes is not None
    assert num_gpus is not None
    if num_gpus < num_nodes:
        raise cells.error("num_gpus", f"is less than num_nodes {num_nodes}; every node has at least one GPU")
    image_size_px = cells.count("image_size_px", is_needed=False) or cells.count("image_size", is_needed=False)
    fields: dict[str, Callable[[str], Any]] = {"cluster": cells.name, "model": cells.name, "placement": cells.text, "precision": cells.text}
    return {
        **{name: read(name) for name, read in fields.items()},
        "num_nodes": num_nodes,
        "num_gpus": num_gpus,
        "per_device_batch_size": cells.count("per_device_batch_size"),
        "image_size_px": image_size_px,
        "sequence_length": cells.count("sequence_length", is_needed=False),
        "gradient_bytes": cells.positive("gradient_bytes", is_needed=False),
        "input_samples_per_s": cells.positive("input_samples_per_s", is_needed=False),
    }
