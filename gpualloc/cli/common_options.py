"""Options that every command takes, and the environment variable of every option: given to commands as they are loaded."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import typer
from typer.main import get_command

PANEL = "For every command"
READ_ELSEWHERE = {  # variables that are no option's, and what they name
    "GPUALLOC_STORE": "the results file",
    "GPUALLOC_WATCH_STORE": "the watch file",
    "GPUALLOC_STATE": "the state file",
    "GPUALLOC_CUDA_ARCHS": "the GPUs to build for",
    "GPUALLOC_BUILD_TORCH": "the torch to build with",
}


def _set_debug(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.find_root().params["debug"] = True


def _set_quiet(ctx: typer.Context, value: bool) -> None:
    if value:
        from gpualloc.cli.verbosity import be_quiet

        be_quiet(ctx.find_root())


def _set_verbose(ctx: typer.Context, value: bool) -> None:
    if value:
        from gpualloc.cli.verbosity import be_verbose

        be_verbose(ctx.find_root())


def _set_format(ctx: typer.Context, value: str | None) -> None:
    if value is None:
        return
    from gpualloc.cli.formats import choose

    has_json = any(parameter.name == "as_json" for parameter in ctx.command.params)
    if value != "json":
        choose(value)
    if has_json:  # also where a settings file says json
        ctx.default_map = {**(ctx.default_map or {}), "as_json": value == "json"}
    elif value == "json":
        raise typer.BadParameter("this command prints no JSON; choose table, csv or markdown")


def _options(
    format: Annotated[
        Literal["table", "csv", "markdown", "json"] | None,
        typer.Option("--format", help="How tables are printed.", callback=_set_format, is_eager=True, rich_help_panel=PANEL),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress; warnings and errors only.", callback=_set_quiet, rich_help_panel=PANEL)
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Where settings come from, and the time taken.", callback=_set_verbose, rich_help_panel=PANEL),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.", callback=_set_debug, rich_help_panel=PANEL)] = False,
) -> None:
    """Never called: its options are copied to other commands."""


def add_common_options(command: Any, path: tuple[str, ...]) -> None:
    """To the command and its sub-commands; options that one has already are its own. The lines of their help's prose become paragraphs.

    Args:
        path: the words that call it, such as ("results", "show"). With the option's they name its environment variable:
            GPUALLOC_RESULTS_SHOW_MODEL.
    """
    if command.help:  # which typer shows by the lines of the source
        command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", command.help)
    taken = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for option in _fresh_options():
        option.opts = [name for name in option.opts if name not in taken]
        if any(name.startswith("--") for name in option.opts):
            command.params.append(option)
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.envvar is None:
            variable = environment_variable(path, parameter)
            if variable not in READ_ELSEWHERE:
                parameter.envvar, parameter.show_envvar = variable, False
    for name, child in getattr(command, "commands", {}).items():
        add_common_options(child, (*path, name))


def environment_variable(path: tuple[str, ...], parameter: Any) -> str:
    """GPUALLOC_BENCH_IMAGE_SIZE of `--image-size` of `bench`."""
    return "_".join(["GPUALLOC", *path, option_name(parameter)]).replace("-", "_").replace(" ", "_").upper()


def option_name(parameter: Any) -> str:
    """ "image-size" of `--image-size`."""
    long_names = [name for name in parameter.opts if name.startswith("--")]
    return str((long_names or parameter.opts)[0]).lstrip("-")


def _fresh_options() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(_options)
    options = list(get_command(app).params)
    for option in options:
        option.expose_value = False  # the commands' functions do not know them
    return options
