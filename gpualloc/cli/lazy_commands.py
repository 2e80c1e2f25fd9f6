"""Sub-commands that are imported when they are used: help lists them all, and reading every one's options takes 15 ms each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is, and the first sentence of its help."""

    place: str  # "package.module:name" of a function or of a typer.Typer
    summary: str
    hidden: bool = False
    panel: str = "Decide and run"  # the group in `gpualloc --help`


class LazyCommands(Mapping[str, Any]):
    """Name -> command, imported on access."""

    def __init__(self, commands: Mapping[str, LazyCommand]) -> None:
        self._commands = commands
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            from gpualloc.cli.common_options import add_common_options

            module, attribute = self._commands[name].place.split(":")
            target = getattr(importlib.import_module(module), attribute)
            if not isinstance(target, typer.Typer):
                function, target = target, typer.Typer(rich_markup_mode="rich", add_completion=False)
                target.command()(function)
            command = get_command(target)
            command.name = name
            add_common_options(command, (name,))
            self._loaded[name] = command
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._commands  # Mapping's own would load it

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)

    def listed(self, name: str) -> TyperCommand:
        """What a list of commands needs of one."""
        command = self._commands[name]
        return TyperCommand(name, help=command.summary, hidden=command.hidden, rich_help_panel=command.panel)
