"""What all commands have in common: formats, less and more output, suggestions, completion, errors without tracebacks."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.cli import formats
from gpualloc.cli.app import COMMANDS, app
from gpualloc.cli.suggestions import did_you_mean, with_suggestion
from gpualloc.errors import GpuallocError, UsageError

ROOT = Path(__file__).parents[2]
ENTRY = "from gpualloc.cli.app import main; main()"


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    yield
    formats.choose("table")


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "100", **environment})


def leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", {})
    return [row for name, child in children.items() for row in leaves(child, (*path, name))] or [(path, command)]


LEAVES = [leaf for name in COMMANDS if " " not in name for leaf in leaves(COMMANDS[name], (name,))]


# Formats


@pytest.mark.usefixtures("filled")
def test_csv_of_runs_is_read_back_and_words_go_to_stderr() -> None:
    rows = list(csv.DictReader(io.StringIO(run("results", "--format", "csv").stdout)))
    assert [(row["run"], row["ok"], row["cases"]) for row in rows] == [("3", "6", "7"), ("2", "3", "3"), ("1", "8", "11")]
    done = run("results", "compare", "1", "3", "--format", "csv")
    assert [row["run 3 is"] for row in csv.DictReader(io.StringIO(done.stdout.split("\n\n")[0]))].count("faster") > 0
    assert "only in run 1:" in done.stderr


@pytest.mark.usefixtures("filled")
def test_csv_of_a_run_has_every_figure() -> None:
    shown = run("results", "show", "1", "--format", "csv").stdout
    assert shown.replace("\r\n", "\n") == run("results", "export", "1").stdout.replace("\r\n", "\n")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("arguments", [["results"], ["results", "show", "1"], ["results", "compare", "1"]])
def test_markdown_tables_have_as_many_cells_in_every_line(arguments: list[str]) -> None:
    formats_ = run(*arguments, "--format", "markdown").stdout
    tables = [block.splitlines() for block in formats_.split("\n\n") if block.startswith("|")]
    assert tables
    for header, rule, *rows in tables:
        assert set(rule) <= set("|- ")
        assert rows
        assert {line.replace("\\|", "").count("|") for line in [header, *rows]} == {rule.count("|")}


def test_cells_are_escaped_and_thousands_are_numbers() -> None:
    formats.choose("markdown")
    assert formats.table_text(["a"], [["x|<b>\ny"]]).plain == "| a |\n| --- |\n| x\\|&lt;b> y |"
    formats.choose("csv")
    assert formats.table_text(["a", "b"], [["1,234.5", "a,b"]]).plain == 'a,b\n1234.5,"a,b"'


@pytest.mark.usefixtures("filled")
def test_format_json_is_json_and_a_command_without_it_says_so() -> None:
    assert run("results", "--format", "json").stdout == run("results", "--json").stdout
    done = run("results", "--format", "cvs")
    assert done.exit_code == 2
    assert "did you mean 'csv'?" in " ".join(done.stderr.replace("│", "").split())


# Less and more


@pytest.fixture
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor that makes progress and warns."""

    def run_checks(**options: Any) -> list[Any]:
        print("checking this", file=sys.stderr)
        print("gpualloc: warning: that", file=sys.stderr)
        return []

    monkeypatch.setattr("gpualloc.doctor.run_checks", run_checks)


@pytest.mark.usefixtures("talking")
@pytest.mark.parametrize("arguments", [["--quiet", "doctor"], ["doctor", "-q"], ["doctor"]])
def test_quiet_keeps_warnings_only(arguments: list[str]) -> None:
    variables = {"GPUALLOC_QUIET": "1"} if arguments == ["doctor"] else {}
    stream = sys.stderr
    assert run(*arguments, **variables).stderr == "gpualloc: warning: that\n"
    assert sys.stderr is stream
    assert run("doctor").stderr == "checking this\ngpualloc: warning: that\n"


@pytest.mark.usefixtures("talking")
@pytest.mark.parametrize("arguments", [["-v", "doctor"], ["doctor", "--verbose"]])
def test_verbose_tells_settings_and_time(arguments: list[str]) -> None:
    *_, setting, took = run(*arguments, GPUALLOC_DOCTOR_QUICK="1").stderr.splitlines()
    assert setting == "gpualloc: setting GPUALLOC_DOCTOR_QUICK=1"
    assert took.startswith("gpualloc: took ")


# Suggestions


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bnech"], "Did you mean 'bench'?"),
        (["results", "shwo"], "Did you mean 'show'?"),
        (["doctor", "--quik"], "--quick"),
        (["bench", "--precision", "f16"], "did you mean 'fp16'?"),
        (["bench", "--strategy", "dpp"], "did you mean 'ddp'?"),
        (["watch", "--device", "cuba"], "did you mean 'cuda'?"),
    ],
)
def test_what_is_misspelt_is_guessed(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert text.replace("'", "") in " ".join(done.stderr.replace("│", "").split()).replace("'", "")


def test_suggestions_are_near_and_made_once() -> None:
    assert did_you_mean("FP16", ["fp16", "bf16"]) == "; did you mean 'fp16'?"
    assert did_you_mean("xyz", ["fp16", "bf16"]) == ""
    message = "--hook 'nne' is unknown; choose one of none, torch_fp16"
    assert with_suggestion(message) == f"{message}; did you mean 'none'?"
    assert with_suggestion(with_suggestion(message)) == with_suggestion(message)
    assert with_suggestion("'a' is broken; try again") == "'a' is broken; try again"


# Completion


@pytest.mark.parametrize(
    ("typed", "has", "has_not"),
    [("gpualloc ", "results", "bench --quality"), ("gpualloc results ex", "export", "show"), ("gpualloc doctor --qu", "--quick", "--fix")],
)
def test_bash_completes_commands_and_options(typed: str, has: str, has_not: str) -> None:
    words = {"_GPUALLOC_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    done = subprocess.run([sys.executable, "-c", ENTRY], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **words}, timeout=60)
    completed = done.stdout.splitlines()
    assert has in completed, done.stderr
    assert has_not not in completed


# Faults


def arguments_for(command: Any) -> list[str]:
    required = [parameter for parameter in command.params if parameter.required]
    options = [word for parameter in required if parameter.param_type_name == "option" for word in (parameter.opts[0], "1")]
    return [*options, *("1" for parameter in required if parameter.param_type_name == "argument")]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (GpuallocError("no luck"), 1, "no luck"),
        (UsageError("no luck"), 2, "no luck"),
        (MemoryError("no luck"), 1, "unexpected MemoryError: no luck; see more with: gpualloc --debug ..."),
        (
            OSError(28, "No space left on device"),
            1,
            "unexpected OSError: [Errno 28] No space left on device; see more with: gpualloc --debug ...",
        ),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_no_command_shows_a_traceback_unless_asked(
    path: tuple[str, ...], command: Any, error: BaseException, exit_code: int, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(command, "callback", fail)
    done = run(*path, *arguments_for(command))
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr == (f"gpualloc: error: {line}\n" if line else "gpualloc: interrupted\n")
    if line:
        assert "Traceback" in run(*path, *arguments_for(command), "--debug").stderr


@pytest.mark.usefixtures("filled")
def test_a_full_disk_behind_the_output_is_told_in_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, "results", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith("gpualloc: error: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
