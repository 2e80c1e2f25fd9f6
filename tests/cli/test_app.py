"""The command as a whole: help, start-up time, version, errors and exit codes."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.errors import GpuallocError, InfeasibleError, UsageError
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import image_case, measured

MAX_HELP_TIME_S = 0.3
ROOT = Path(__file__).parents[2]
ENTRY = "from gpualloc.cli.app import main; main()"


def gpualloc(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, with its output piped."""
    command = [sys.executable, "-c", ENTRY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=60)


def walk_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from walk_commands(child, (*path, name))


ALL_COMMANDS = list(walk_commands(typer.main.get_command(app)))


def test_the_walk_finds_the_commands() -> None:
    assert {("bench",), ("doctor",), ("results", "list"), ("results", "delete")} <= set(ALL_COMMANDS)


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example_on_a_line_of_its_own(path: tuple[str, ...], option: str) -> None:
    done = CliRunner().invoke(app, [*path, option], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    example = " ".join(("gpualloc", *path))
    assert any(line.strip().startswith(example) for line in done.stdout.splitlines() if "Usage:" not in line), done.stdout
    assert "<bool>" not in done.stdout  # a switch takes no value


def test_lines_of_the_source_are_no_lines_of_the_help() -> None:
    done = CliRunner().invoke(app, ["calibrate", "--help"], env={"COLUMNS": "160"})
    lines = [line.strip() for line in done.stdout.splitlines()]
    (prose,) = (line for line in lines if line.startswith("All-reduce, all-gather"))
    assert len(prose) > 140  # as wide as there is room
    assert lines.index("gpualloc calibrate --name our-box") == lines.index("Examples:") + 1


def walk_options(command: Any) -> Iterator[Any]:
    yield from command.params
    for child in getattr(command, "commands", {}).values():
        yield from walk_options(child)


def test_no_options_placeholder_is_its_name_in_capitals() -> None:
    """Some versions of Typer (0.27) then take the capitals for the option."""
    parameters = walk_options(typer.main.get_command(app))
    options = [option for option in parameters if option.param_type_name == "option" and option.metavar is not None]
    assert len(options) > 50
    assert [option.name for option in options if option.metavar == option.name.upper()] == []


def test_the_list_of_commands_says_what_their_help_says() -> None:
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert group.commands.listed(name).help == command.help.split("\n\n")[0]


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = f"import sys, atexit; atexit.register(lambda: print([m for m in ('torch', 'numpy') if m in sys.modules])); {ENTRY}"
    for arguments in (["--help"], ["bench", "--help"], ["--version"], ["results", "--store", "/nowhere/results.sqlite"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout


@pytest.mark.clock
def test_help_is_quick() -> None:
    """By CPU time, which on an idle machine is the time one waits. On a slow one: a third more than its libraries take to load.

    Each pair is measured back to back and one has to hold: a processor shared with others changes its speed between pairs.
    """

    def measure(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, "--help"], stdout=subprocess.DEVNULL, cwd=ROOT, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs_s = [(measure(ENTRY), measure("import typer, typer.rich_utils")) for _ in range(10)]
    assert any(help_s < max(MAX_HELP_TIME_S, 4 / 3 * libraries_s) for help_s, libraries_s in pairs_s), pairs_s


def test_version_says_what_was_built() -> None:
    lines = gpualloc("--version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["gpualloc", "extension:", "torch"]
    assert "built for torch" in lines[1] or "not installed" in lines[1]


@pytest.mark.parametrize("arguments", [[], ["--no-such-option"], ["no-such-command"], ["results", "delete"]])
def test_usage_errors_exit_with_2_and_say_so_on_stderr(arguments: list[str]) -> None:
    done = gpualloc(*arguments)
    assert done.returncode == 2
    assert "Usage: gpualloc" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["results"], ["results", "show"], ["results", "nonsense"]])
@pytest.mark.usefixtures("filled")
def test_piped_output_has_no_colour_codes(arguments: list[str]) -> None:
    done = gpualloc(*arguments, COLUMNS="60")
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, (done.stdout + done.stderr).splitlines())) <= 60


def test_piped_output_is_120_wide_whatever_the_encoding(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ResultsStore(filled) as store:
        store.add(1, measured(image_case(model="größtes"), 0.1))
    monkeypatch.delenv("COLUMNS")
    done = gpualloc("results", "show", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "gr\\xf6\\xdftes, 200 px" in done.stdout
    assert 110 < max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("arguments", [["results"], ["results", "show", "1", "--json"]])
def test_a_closed_pipe_is_no_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-c", ENTRY, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 1)
    process.stderr.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `gpualloc [options] doctor` with a doctor that raises the error given."""

    def run(error: BaseException, *options: str) -> Any:
        def raise_error(**options: Any) -> None:
            raise error

        monkeypatch.setattr("gpualloc.doctor.run_checks", raise_error)
        return CliRunner().invoke(app, [*options, "doctor"])

    return run


@pytest.mark.parametrize(
    ("error", "exit_code"), [(GpuallocError("disk gone"), 1), (UsageError("disk gone"), 2), (InfeasibleError("disk\n\x1b[31mgone"), 3)]
)
def test_an_error_is_one_line(failing: Any, error: GpuallocError, exit_code: int) -> None:
    done = failing(error)
    assert done.exit_code == exit_code
    assert done.stderr == "gpualloc: error: " + str(error).replace("\n", " ").replace("\x1b", "\\x1b") + "\n"
    assert done.stdout == ""


def test_debug_shows_the_traceback(failing: Any) -> None:
    done = failing(UsageError("disk gone"), "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("gpualloc: error: disk gone\n")


def test_an_unexpected_error_is_one_line_too(failing: Any) -> None:
    done = failing(ZeroDivisionError("by zero"))
    assert done.exit_code == 1
    assert done.stderr == "gpualloc: error: unexpected ZeroDivisionError: by zero; see more with: gpualloc --debug ...\n"
    assert "raise error" in failing(ZeroDivisionError("by zero"), "--debug").stderr


def test_an_interrupt_exits_with_130(failing: Any) -> None:
    done = failing(KeyboardInterrupt())
    assert (done.exit_code, done.stderr) == (130, "gpualloc: interrupted\n")
