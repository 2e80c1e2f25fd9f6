"""JSON columns: what a row holds as text, checked when read because a file may be edited or damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any

from gpualloc import plain_data
from gpualloc.errors import StoreError
from gpualloc.records import BenchCase, Environment, Measurement, from_json, to_json

_MAY_BE_NONFINITE = ("loss_start", "loss_end")  # a diverged training is a result
_LARGEST = 1e30  # beyond any figure; also bars integers that do not fit a float


def encode_options(options: dict[str, Any]) -> tuple[str, str]:
    """(JSON text, digest): the digest is equal exactly when two commands ask for the same grid."""
    text = json.dumps(options, sort_keys=True)
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_measurement(measurement: Measurement) -> str:
    """The text of a row; NaN in a loss is kept as Python's JSON writes it."""
    return json.dumps(to_json(measurement))


def decode_measurement(text: str) -> Measurement:
    """The measurement of a row.

    Raises:
        StoreError: not JSON, of a newer schema, a field missing or unknown, of the wrong type, or not finite.
    """
    try:
        data = plain_data.from_json(text)
    except (ValueError, TypeError) as error:
        raise StoreError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise StoreError(f"a JSON {type(data).__name__} instead of an object")
    measurement = from_json(data)
    for record in (measurement, measurement.case, measurement.environment):
        if record is not None:
            _check_fields(record)
    if measurement.status == "ok" and not (measurement.step_time_s or 0) > 0:
        raise StoreError(f"status 'ok' with step_time_s {measurement.step_time_s!r}")
    return measurement


def decode_environment(text: str) -> Environment | None:
    """The environment of a run, or None when the row is damaged."""
    try:
        environment = Environment(**plain_data.from_json(text))
        _check_fields(environment)
    except (ValueError, TypeError, StoreError):
        return None
    return environment


def decode_options(text: str) -> dict[str, Any]:
    """The options of a run, or {} when the row is damaged."""
    try:
        options = plain_data.from_json(text)
    except (ValueError, TypeError):
        return {}
    return options if isinstance(options, dict) else {}


def _check_fields(record: Any) -> None:
    for field, allowed in _FIELD_TYPES[type(record)].items():
        value = getattr(record, field)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise StoreError(f"{field} is {value!r}, expected {' or '.join(kind.__name__ for kind in allowed)}")
        if field in _MAY_BE_NONFINITE and isinstance(value, float):
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, (int, float)) and not abs(number) < _LARGEST for number in numbers):
            raise StoreError(f"{field} is {value!r}, expected a finite number")


def _field_types(record_type: type) -> dict[str, tuple[type, ...]]:
    """For each field of a record the classes its value may have; a float may also be an int, as JSON writes 2.0 and 2 alike."""
    hints = typing.get_type_hints(record_type)
    allowed = {}
    for field in dataclasses.fields(record_type):
        hint = hints[field.name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        classes = [typing.get_origin(member) or member for member in members]
        allowed[field.name] = tuple(classes + ([int] if float in classes else []))
    return allowed


_FIELD_TYPES: dict[type, dict[str, tuple[type, ...]]] = {record: _field_types(record) for record in (BenchCase, Environment, Measurement)}
