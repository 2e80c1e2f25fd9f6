"""What is wrong with a user's file, said so that it can be put right: the file, the place in it, what is allowed and what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_json, from_yaml

_File = TypeVar("_File", bound=BaseModel)
_MAX_SHOWN = 60  # characters of a value


def read_user_file(path: Path, kind: type[_File], *, what: str) -> _File:
    """The file as a record; YAML, of which JSON is a part.

    Args:
        what: the file in words, such as "workloads file".

    Raises:
        UsageError: it cannot be read, is not YAML, or something in it is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}; docs/plan.md has one to start from") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from error
    try:
        data = from_json(text) if path.suffix == ".json" else from_yaml(text)
    except ValueError as error:
        raise UsageError(f"{path} is not {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}; docs/plan.md describes the fields of a {what}") from error


def describe(error: ValidationError) -> str:
    """The first mistake with its path and what is there, and how many there are besides."""
    problems = error.errors()
    first = problems[0]
    where = _path(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = first.get("input")
    is_shown = first["type"] not in ("missing", "extra_forbidden") and not isinstance(given, (dict, list))
    seen = f", not {_shortened(repr(given))}" if is_shown else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {message}{seen}{more}"


def _path(places: tuple[Any, ...]) -> str:
    """("workloads", 0, "dataset_size") -> "workloads[0].dataset_size"."""
    text = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return text.lstrip(".") or "the file"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
