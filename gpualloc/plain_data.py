"""The text of a user's file as plain data. Whatever is wrong with a text is a ValueError in one line, since parsers fail in many ways.

Beyond syntax these are numbers that nothing can hold, nesting deeper than Python's stack, and YAML's aliases, with which a short text
stands for more values than there is memory.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_MAX_DEPTH = 100
MAX_VALUES = 500_000
_MAX_INTEGER_BITS = 10_000  # Python writes no integer of more than 4300 digits
_TOO_DEEP = "nested too deeply"


def from_json(text: str | bytes) -> Any:
    """Raises: ValueError: not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def from_toml(text: str) -> dict[str, Any]:
    """Raises: ValueError: not TOML; says "line N" where that is known."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_size(data)
    return data


def from_yaml(text: str) -> Any:
    """Raises: ValueError: not YAML, or of a tag that is no plain data."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except YAML_ERRORS as error:
        raise ValueError(value_error_text(error)) from None
    check_size(data)
    return data


# What PyYAML's constructors let through for values such as 2026-13-45, !!int '' and !!bool maybe.
YAML_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def value_error_text(error: Exception) -> str:
    """Of `YAML_ERRORS`, in words."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return str(error) if type(error) is ValueError else f"a value cannot be read ({type(error).__name__}: {error})"


def check_size(data: Any) -> None:
    """Raises: ValueError: more or deeper values than a file that was written by hand has, aliases written out."""
    num_values, waiting = 0, [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        num_values += 1
        if depth > _MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if num_values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise ValueError("an integer has thousands of digits")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(item, depth + 1) for item in value]
