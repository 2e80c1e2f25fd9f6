"""The text of a study file as data, with the line that each entry stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpualloc.errors import UsageError
from gpualloc.plain_data import MAX_VALUES, YAML_ERRORS, check_size, from_toml, value_error_text

_Place = tuple[int | str, ...]  # such as ("grids", 0, "image_size")


@dataclass(frozen=True)
class StudyText:
    """A file's content; dashes in its keys have become underscores."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[_Place, int]

    def line_of(self, place: _Place) -> int:
        """The line of the entry, or of what it is part of; counted from 1."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_text(path: Path) -> StudyText:
    """Reads YAML or TOML, by the file's suffix.

    Raises:
        UsageError: no such file, no such format, a syntax error, or a key that stands there twice.
    """
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise UsageError(f"study file {path} is neither .yaml, .yml nor .toml; rename it, or write it as one of these")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"study file {path} cannot be read: {error}; give a text file that can") from error
    data, lines = _read_toml(path, text) if path.suffix == ".toml" else _read_yaml(path, text)
    if data is not None and not isinstance(data, dict):
        raise UsageError(f"{path}:1: a study file is made of lines such as 'image_size: [100, 200]', not of one {type(data).__name__}")
    return StudyText(path, _with_underscores(data or {}), {tuple(map(_underscored, place)): line for place, line in lines.items()})


def _read_yaml(path: Path, text: str) -> tuple[Any, dict[_Place, int]]:
    lines: dict[_Place, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, lines
        _note_lines(path, root, (), lines)
        data = loader.construct_document(root)
        check_size(data)
        return data, lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: not YAML: {error.problem}; see examples/study.yaml for the form") from error
    except yaml.YAMLError as error:  # such as control characters
        raise UsageError(f"{path}: not YAML: {error}; see examples/study.yaml for the form") from error
    except YAML_ERRORS as error:
        raise UsageError(f"{path}: not YAML: {value_error_text(error)}; see examples/study.yaml for the form") from error


def _note_lines(path: Path, node: yaml.Node, place: _Place, lines: dict[_Place, int]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            inner = (*place, index)
            _note_line(inner, item, lines)
            _note_lines(path, item, inner, lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner, line = (*place, str(key.value)), key.start_mark.line + 1
            if inner in lines:
                raise UsageError(f"{path}:{line}: {key.value!r} stands in line {lines[inner]} already; join the two or leave one out")
            _note_line(inner, key, lines)
            _note_lines(path, value, inner, lines)


def _note_line(place: _Place, node: yaml.Node, lines: dict[_Place, int]) -> None:
    lines[place] = node.start_mark.line + 1
    if len(lines) > MAX_VALUES:  # aliases of aliases
        raise ValueError(f"more than {MAX_VALUES:,} values")


def _read_toml(path: Path, text: str) -> tuple[Any, dict[_Place, int]]:
    try:
        data = from_toml(text)
    except ValueError as error:
        found = re.search(r"line (\d+)", str(error))
        raise UsageError(f"{path}:{found[1] if found else 1}: not TOML: {error}; see docs/bench.md for the form") from error
    lines: dict[_Place, int] = {}
    place: _Place = ()
    num_grids = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"\s*\[\[\s*grids\s*\]\]", line):
            place = ("grids", num_grids)
            num_grids += 1
            lines[place] = number
        elif found := re.match(r"""\s*["']?([\w-]+)["']?\s*=""", line):
            lines.setdefault((*place, found[1]), number)
    return data, lines


def _underscored(part: int | str) -> int | str:
    return part.replace("-", "_") if isinstance(part, str) else part


def _with_underscores(data: Any) -> Any:
    if isinstance(data, dict):
        return {_underscored(str(key)): _with_underscores(value) for key, value in data.items()}
    return [_with_underscores(item) for item in data] if isinstance(data, list) else data
