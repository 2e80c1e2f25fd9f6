"""Study files: the grids and the settings of a benchmark in YAML or TOML, under the names of the command's options.

Keys at the top hold for all grids of the list `grids`, where a grid's own keys win; without that list the top is the one grid.
Presets are study files that come with the package.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, create_model, field_validator

from gpualloc.bench.notation import NOTATIONS, parse_options
from gpualloc.bench.options import BenchOptions
from gpualloc.bench.settings import RunSettings
from gpualloc.bench.study_text import StudyText, read_text
from gpualloc.errors import UsageError

PRESETS = ("quick", "study", "llm")

_SETTINGS = tuple(field.name for field in fields(RunSettings))
_Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a file asks for, every value checked."""

    grids: tuple[dict[str, Any], ...] = ({},)  # fields of BenchOptions
    settings: dict[str, Any] = field(default_factory=dict)  # fields of RunSettings


def load_preset(name: str) -> Study:
    """One of `PRESETS`.

    Raises:
        UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r} is unknown; choose one of {', '.join(PRESETS)}{_did_you_mean(name, PRESETS)}")
    return load_study(Path(str(files("gpualloc.bench"))) / "presets" / f"{name}.yaml")


def load_study(path: Path) -> Study:
    """The study in a .yaml, .yml or .toml file.

    Raises:
        UsageError: the file cannot be read; or, with its line, what is wrong there and what is allowed.
    """
    text = read_text(path)
    try:
        _StudyFile.model_validate(text.data)
    except ValidationError as error:
        raise UsageError(_describe(error, text)) from None
    shared = {name: value for name, value in text.data.items() if name in NOTATIONS}
    return Study(
        grids=tuple(parse_options({**shared, **grid}) for grid in text.data.get("grids", [{}])),
        settings={name: value for name, value in text.data.items() if name in _SETTINGS},
    )


def narrowed(grid: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A file's grid with the options `given` beside it, without those of several ranks where a single process is all that is asked for."""
    if set(given.get("strategies", ())) == {"single"}:
        grid = {name: value for name, value in grid.items() if name not in ("num_gpus", "hooks", "ranks_per_gpu")}
    return {**grid, **given}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_alone(cls, value: Any, info: ValidationInfo) -> Any:
        """What the command line would say of the value."""
        name = str(info.field_name)
        try:
            if name in NOTATIONS:
                BenchOptions(device="cpu", **parse_options({name: value}))
            elif name in _SETTINGS:
                RunSettings(**{name: value})
        except UsageError as error:
            raise ValueError(str(error).removeprefix("--")) from None
        return value


def _optional(types: dict[str, Any]) -> dict[str, Any]:
    return {name: (kind, None) for name, kind in types.items()}


_Grid = create_model("_Grid", __base__=_Strict, **_optional(dict.fromkeys(NOTATIONS, _Value | list[_Value])))
_GridList = typing.Annotated[list[_Grid], Field(min_length=1)]  # type: ignore[valid-type]
_StudyFile = create_model("_StudyFile", __base__=_Grid, **_optional({**typing.get_type_hints(RunSettings), "grids": _GridList}))


def _describe(error: ValidationError, text: StudyText) -> str:
    """The first fault of the file, and how many more there are."""
    faults: dict[tuple[int, str], str] = {}
    for fault in error.errors():
        path = fault["loc"][:3] if fault["loc"][0] == "grids" else fault["loc"][:1]
        faults.setdefault((text.line_of(path), str(path[-1])), _explain(fault, path))
    (line, _), message = min(faults.items())
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{text.path}:{line}: {message}{more}"


def _explain(fault: Any, path: tuple[int | str, ...]) -> str:
    name = str(path[-1])
    if fault["type"] == "extra_forbidden":
        allowed = [*NOTATIONS, *_SETTINGS, "grids"] if len(path) == 1 else list(NOTATIONS)
        return f"{name!r} is unknown; choose one of {', '.join(allowed)}{_did_you_mean(name, allowed)}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if name == "grids" or isinstance(path[-1], int):
        return "grids is a list of at least one grid, each with keys of its own"
    return f"{name} is {fault['input']!r}; give {'one value' if name in _SETTINGS else 'one value or a list of values'}"


def _did_you_mean(name: str, allowed: Collection[str]) -> str:
    closest = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {closest[0]}?" if closest else ""
