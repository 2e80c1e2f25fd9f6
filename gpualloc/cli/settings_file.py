"""Settings in TOML files: one section per command, one line per option. What is given on the command line or in the environment wins."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpualloc.cli.common_options import option_name
from gpualloc.cli.settings_paths import settings_paths
from gpualloc.cli.suggestions import did_you_mean
from gpualloc.errors import UsageError
from gpualloc.plain_data import from_toml

_ROOT_OPTIONS = ("debug", "quiet", "verbose")  # those before any section


@dataclass(frozen=True)
class Setting:
    """One line of a file."""

    value: Any
    place: str  # FILE:LINE


@dataclass
class SettingsFiles:
    """What the files say: (section, ..., option) -> setting; of the later file where both say something."""

    read: list[Path] = field(default_factory=list)
    settings: dict[tuple[str, ...], Setting] = field(default_factory=dict)

    def of_command(self, command: Any, path: tuple[str, ...], context: Any) -> dict[str, Any]:
        """The command's `default_map`, checked: parameter -> value, sub-command -> its own.

        Raises:
            UsageError: an option or a value that the command does not have; names file, line and what is allowed.
        """
        parameters = {option_name(parameter): parameter for parameter in command.params if parameter.param_type_name == "option"}
        children = getattr(command, "commands", {})
        values: dict[str, Any] = {}
        for key, setting in self.settings.items():
            if key[: len(path)] != path or len(key) == len(path):
                continue
            name = key[len(path)]
            if name in children and len(key) > len(path) + 1:
                continue
            if len(key) > len(path) + 1 or name not in parameters:
                where = " ".join(path)
                allowed = [*parameters, *children]
                raise UsageError(
                    f"{setting.place}: {where!r} has no option {name!r}{did_you_mean(name, allowed)}; see gpualloc {where} --help"
                )
            values[parameters[name].name] = checked_value(parameters[name], setting, context)
        for name, child in children.items():
            own = self.of_command(child, (*path, name), context)
            if own:
                values[name] = own
        return values

    def check_sections(self, commands: Mapping[str, Any]) -> None:
        """Raises: UsageError: a section of no command, or an option outside one."""
        for key, setting in self.settings.items():
            if len(key) == 1:
                if key[0] not in _ROOT_OPTIONS:
                    allowed = [*_ROOT_OPTIONS, *commands]
                    raise UsageError(
                        f"{setting.place}: {key[0]!r} stands before any section; there only {', '.join(_ROOT_OPTIONS)} can"
                        f"{did_you_mean(key[0], allowed)}"
                    )
                if not isinstance(setting.value, bool):
                    raise UsageError(f"{setting.place}: {key[0]} is {setting.value!r}; choose true or false")
            elif key[0] not in commands:
                raise UsageError(
                    f"{setting.place}: there is no command {key[0]!r}; choose one of {', '.join(commands)}{did_you_mean(key[0], commands)}"
                )

    def described(self, command: Any, name: str) -> list[str]:
        """What files and variables say for the command, a line each."""
        lines = [f"{'.'.join(key)} = {setting.value!r} from {setting.place}" for key, setting in self.settings.items() if key[0] == name]
        variables = [parameter.envvar for parameter in command.params if isinstance(parameter.envvar, str)]
        return lines + [f"{variable}={os.environ[variable]}" for variable in variables if os.environ.get(variable)]

    def root_values(self) -> dict[str, Any]:
        return {key[0]: setting.value for key, setting in self.settings.items() if len(key) == 1}


def read_settings_files() -> SettingsFiles:
    """Raises: UsageError: a file that cannot be read or is not TOML; names file and line."""
    found = SettingsFiles()
    for path in map(Path, settings_paths()):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"settings file {path} cannot be read: {error}; make it readable or move it away") from error
        try:
            data = from_toml(text)
        except ValueError as error:
            line = re.search(r"line (\d+)", str(error))
            raise UsageError(f"{path}:{line[1] if line else 1}: not TOML: {error}; see docs/command_line.md for the form") from error
        found.read.append(path)
        lines = _lines_of(text)
        for key, value in _flat(data, ()):
            dashed = tuple(part.replace("_", "-") for part in key)
            found.settings[dashed] = Setting(value, f"{path}:{lines.get(dashed, 1)}")
    return found


def checked_value(parameter: Any, setting: Setting, context: Any) -> Any:
    """The value as the option takes it: a list becomes LIST, true and false a SWITCH's on and off where it is no flag.

    Raises:
        UsageError: not a value of the option.
    """
    value, name = setting.value, f"--{option_name(parameter)}"
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{setting.place}: {name} is a flag and {value!r} is not; choose true or false")
        return value
    if isinstance(value, list) and not parameter.multiple:
        value = ",".join("on" if item is True else "off" if item is False else str(item) for item in value)
    elif isinstance(value, bool):
        value = "on" if value else "off"
    text: Any = [str(item) for item in value] if isinstance(value, list) else [str(value)] if parameter.multiple else str(value)
    callback, parameter.callback = parameter.callback, None  # this is but a look
    try:
        parameter.process_value(context, text)
    except Exception as error:  # a usage error of whichever click Typer brings
        raise UsageError(f"{setting.place}: {name}: {getattr(error, 'message', error)}") from error
    finally:
        parameter.callback = callback
    return text


def handed_down(ctx: Any, **values: Any) -> dict[str, Any]:
    """The `default_map` for the sub-command of a group whose options hold for it, too: what was given to the group wins over files."""
    name = ctx.invoked_subcommand
    own = dict((ctx.default_map or {}).get(name) or {})
    for option, value in values.items():
        if source_of(ctx, option) in ("COMMANDLINE", "ENVIRONMENT") or option not in own:
            own[option] = value
    return {name: own}


def source_of(ctx: Any, parameter: str) -> str:
    """COMMANDLINE, ENVIRONMENT, DEFAULT_MAP (a file) or DEFAULT."""
    source = ctx.get_parameter_source(parameter)
    return "DEFAULT" if source is None else str(source.name)


def _flat(data: Mapping[str, Any], before: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    rows: list[tuple[tuple[str, ...], Any]] = []
    for key, value in data.items():
        rows += _flat(value, (*before, key)) if isinstance(value, dict) else [((*before, key), value)]
    return rows


def _lines_of(text: str) -> dict[tuple[str, ...], int]:
    """(section, ..., option) -> its line, for files as people write them."""
    lines: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = _parts(found[1])
        elif found := re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[\w-]+)*)\s*=""", line):
            lines.setdefault((*section, *_parts(found[1])), number)
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'").replace("_", "-") for part in dotted.split("."))
