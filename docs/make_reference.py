"""Writes docs/reference.md: every command and option, from the code; and docs/api.md by make_api.py.

A test fails where a page is not what this writes.

python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperArgument, TyperOption
from typer.main import get_command

from gpualloc.cli.app import app
from gpualloc.cli.common_options import PANEL

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference: commands and options

Made from the code by `python docs/make_reference.py`. What each is for is on the pages of [the guide](../README.md#the-guide).
"""


def make_reference() -> str:
    """The page as Markdown."""
    group: Any = get_command(app)
    commands = [line for name, command in group.commands.items() for line in _command(f"gpualloc {name}", command)]
    common = [row for parameter in group.commands["doctor"].params if _is_common(parameter) and (row := _row(parameter))]
    return "\n".join([HEAD, *commands, "## For every command", "", *_table(common)]) + "\n"


def _is_common(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) == PANEL


def _command(name: str, command: Any) -> Iterator[str]:
    purpose, _, examples = inspect.cleandoc(command.help or "").replace("\\[", "[").partition("Examples:")
    yield from (f"## `{name}`", "", " ".join(purpose.split()), "")
    if examples:
        yield from ("```", *(line.strip() for line in examples.strip().splitlines()), "```", "")
    rows = [row for parameter in command.params if not _is_common(parameter) and (row := _row(parameter))]
    if rows:
        yield from (*_table(rows), "")
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {child_name}", child)


def _table(rows: list[str]) -> list[str]:
    return ["| | default | |", "|---|---|---|", *rows]


def _row(parameter: Any) -> str | None:
    if isinstance(parameter, TyperArgument):
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    elif isinstance(parameter, TyperOption) and "--help" not in parameter.opts:
        placeholder = "" if parameter.is_flag else f" {parameter.metavar or _values(parameter)}"
        name = f"`{', '.join((*parameter.opts, *parameter.secondary_opts))}{placeholder}`"
    else:
        return None
    is_default_said = not (parameter.default is None or parameter.default is False or callable(parameter.default) or parameter.required)
    default = f"`{parameter.default}`" if is_default_said else ""
    cells = (name, default, parameter.help or "")
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _values(parameter: Any) -> str:
    """The choices, or what kind of value it is."""
    annotation = parameter.type_descriptor.annotation
    choices = [value for member in (annotation, *typing.get_args(annotation)) for value in _choices(member)]
    kinds = [member.__name__.upper() for member in (annotation, *typing.get_args(annotation)) if isinstance(member, type)]
    return "|".join(choices) or next((kind for kind in kinds if kind != "NONETYPE"), "VALUE")


def _choices(annotation: Any) -> list[str]:
    return [str(value) for value in typing.get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []


if __name__ == "__main__":
    import make_api  # beside this file

    PAGE.write_text(make_reference())
    make_api.PAGE.write_text(make_api.make_api())
