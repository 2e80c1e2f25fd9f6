"""Measurements as CSV (RFC 4180), one line per case, units in the column names."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from gpualloc.records import BenchCase, Environment, Measurement

_CASE_FIELDS = [field.name for field in fields(BenchCase)]
_FIGURE_FIELDS = [field.name for field in fields(Measurement) if field.name not in ("case", "environment")]
_ENVIRONMENT_FIELDS = [field.name for field in fields(Environment)]


def to_csv(run_id: int, measurements: Sequence[Measurement]) -> str:
    """A header and one line per measurement; an unknown figure is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run_id", "case_key", *_CASE_FIELDS, *_FIGURE_FIELDS, *(f"environment_{name}" for name in _ENVIRONMENT_FIELDS)])
    for measurement in measurements:
        case, figures = asdict(measurement.case), asdict(measurement)
        environment = asdict(measurement.environment) if measurement.environment else {}
        values = [run_id, measurement.case.key(), *(case[name] for name in _CASE_FIELDS), *(figures[name] for name in _FIGURE_FIELDS)]
        writer.writerow([_cell(value) for value in [*values, *(environment.get(name) for name in _ENVIRONMENT_FIELDS)]])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return ";".join(str(item) for item in value)
    # A spreadsheet runs text that starts like this as a formula: https://owasp.org/www-community/attacks/CSV_Injection
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
