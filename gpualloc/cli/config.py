"""`gpualloc config`: every setting, its value, and where that comes from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from gpualloc.errors import UsageError

_PRECEDENCE = "the command line wins over GPUALLOC_* variables, these over ./gpualloc.toml, that over the user's config.toml"


@dataclass(frozen=True, kw_only=True)
class _Row:
    setting: str  # "bench.precision"
    value: Any
    source: str  # "environment", "file" or "default"
    where: str  # the variable, FILE:LINE, or ""


def config(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]...", help="All options of this command, such as bench or results show.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="All options of all commands, also those at their default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show settings and where they come from: files, environment variables, defaults.

    A file has a section for each command and a line for each option:

      \\[bench]
      precision = \\["fp16", "bf16"]
      \\[results.show]
      json = true

    Examples:
      gpualloc config
      gpualloc config bench
      gpualloc config --all --json
    """
    from gpualloc.cli.app import COMMANDS
    from gpualloc.cli.settings_file import read_settings_files
    from gpualloc.cli.settings_paths import settings_paths
    from gpualloc.cli.suggestions import did_you_mean
    from gpualloc.cli.tables import output_console, print_json, printable, text_table

    files = read_settings_files()
    files.check_sections(COMMANDS)
    if command and command[0] not in COMMANDS:
        raise UsageError(f"there is no command {command[0]!r}; choose one of {', '.join(COMMANDS)}{did_you_mean(command[0], COMMANDS)}")
    rows = []
    for name in [command[0]] if command else COMMANDS:
        files.of_command(COMMANDS[name], (name,), ctx)  # refuses what is wrong
        rows += [row for row in _rows(COMMANDS[name], (name,), files.settings) if command or show_all or row.source != "default"]
    if command:
        rows = [row for row in rows if row.setting.split(".")[: len(command)] == command]
        if not rows:
            raise UsageError(f"{' '.join(command)!r} has no options; name a command such as: {', '.join(COMMANDS)}")
    else:
        rows = [*_general_rows(files.root_values()), *rows]
    paths = [{"path": path, "is_read": path in map(str, files.read)} for path in settings_paths()]
    unknown = _unknown_variables(COMMANDS)
    for text in unknown:
        print(f"gpualloc: warning: {printable(text)}", file=sys.stderr)
    if as_json:
        print_json({"files": paths, "precedence": _PRECEDENCE, "settings": [asdict(row) for row in rows], "unknown_variables": unknown})
        return
    console = output_console()
    table = text_table("setting", "value", "from", fixed=["setting"])
    for row in rows:
        table.add_row(row.setting, printable(_shown(row.value)), printable(f"{row.source} {row.where}".strip()))
    console.print(table)
    console.print()
    for path in paths:
        console.print(printable(f"{path['path']}: {'read' if path['is_read'] else 'not there'}"))
    console.print(_PRECEDENCE)


def _rows(command: Any, path: tuple[str, ...], settings: Any) -> Iterator[_Row]:
    from gpualloc.cli.common_options import option_name

    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.hidden:
            continue
        name = option_name(parameter)
        setting, variable = settings.get((*path, name)), parameter.envvar
        value: Any = parameter.default if isinstance(parameter.default, (str, int, float, bool)) else None
        source, where = "default", ""
        if isinstance(variable, str) and os.environ.get(variable):
            value, source, where = os.environ[variable], "environment", variable
        elif setting is not None:
            value, source, where = setting.value, "file", setting.place
        yield _Row(setting=".".join((*path, name)), value=value, source=source, where=where)
    for name, child in getattr(command, "commands", {}).items():
        yield from _rows(child, (*path, name), settings)


def _general_rows(root_values: dict[str, Any]) -> Iterator[_Row]:
    from gpualloc.store import default_store_path, default_watch_store_path

    for variable, noun, path in (
        ("GPUALLOC_STORE", "results file", default_store_path()),
        ("GPUALLOC_WATCH_STORE", "watch file", default_watch_store_path()),
    ):
        is_set = bool(os.environ.get(variable))
        yield _Row(setting=noun, value=str(path), source="environment" if is_set else "default", where=variable if is_set else "")
    for name in ("debug", "quiet", "verbose"):
        variable = f"GPUALLOC_{name.upper()}"
        if os.environ.get(variable):
            yield _Row(setting=name, value=os.environ[variable], source="environment", where=variable)
        elif name in root_values:
            yield _Row(setting=name, value=root_values[name], source="file", where="")


def _unknown_variables(commands: Any) -> list[str]:
    """Variables that begin as ours do and are nobody's: most likely misspelt."""
    from gpualloc.cli.common_options import READ_ELSEWHERE
    from gpualloc.cli.suggestions import did_you_mean

    def variables(command: Any) -> Iterator[str]:
        yield from (parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str))
        for child in getattr(command, "commands", {}).values():
            yield from variables(child)

    asked = [name for name in os.environ if name.startswith("GPUALLOC_")]
    if not asked:
        return []
    known = {*READ_ELSEWHERE, "GPUALLOC_DEBUG", "GPUALLOC_QUIET", "GPUALLOC_VERBOSE"}
    known |= {variable for name in commands for variable in variables(commands[name])}
    return [f"{name} is no setting{did_you_mean(name, known)}" for name in sorted(asked) if name not in known]


def _shown(value: Any) -> str:
    return "-" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
