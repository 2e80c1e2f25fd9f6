"""Settings files, variables, and `gpualloc config`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import COMMANDS, app
from gpualloc.cli.settings_file import read_settings_files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the user's file and the one in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "gpualloc").mkdir(parents=True)

    def write(own: str = "", user: str = "") -> None:
        for path, text in ((Path("gpualloc.toml"), own), (tmp_path / "config" / "gpualloc" / "config.toml", user)):
            if text:
                path.write_text(text)

    return write


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "150", **environment})


def settings(*arguments: str, **environment: str) -> dict[str, tuple[Any, str, str]]:
    rows = json.loads(run("config", *arguments, "--json", **environment).stdout)["settings"]
    return {row["setting"]: (row["value"], row["source"], row["where"]) for row in rows}


def dry_run(*arguments: str, **environment: str) -> set[str]:
    """Precisions that `bench` would measure."""
    done = run("bench", "--device", "cpu", "--model", "gpt_small", "--strategy", "single", "--dry-run", "--json", *arguments, **environment)
    assert done.exit_code == 0, done.stderr
    return {word for word in ("fp16", "bf16", "fp64") if f'"precision": "{word}"' in done.stdout}


def test_the_command_line_wins_over_variables_these_over_the_own_file_and_that_over_the_users(files: Callable[..., None]) -> None:
    files(user="[bench]\nprecision = 'fp64'\nrepeats = 1\n")
    assert dry_run() == {"fp64"}
    files(own="[bench]\nprecision = ['bf16', 'fp64']\n")
    assert dry_run() == {"bf16", "fp64"}
    assert dry_run(GPUALLOC_BENCH_PRECISION="fp16") == {"fp16"}
    assert dry_run("--precision", "bf16", GPUALLOC_BENCH_PRECISION="fp16") == {"bf16"}
    assert settings(GPUALLOC_BENCH_STEPS="7") == {
        **{name: row for name, row in settings().items() if name.endswith(" file")},
        "bench.precision": (["bf16", "fp64"], "file", "gpualloc.toml:2"),
        "bench.repeats": (1, "file", f"{Path('config').absolute()}/gpualloc/config.toml:3"),
        "bench.steps": ("7", "environment", "GPUALLOC_BENCH_STEPS"),
    }


def test_a_study_that_is_asked_for_says_more_than_a_settings_file(files: Callable[..., None]) -> None:
    files(own="[bench]\nprecision = 'fp64'\n")
    Path("study.yaml").write_text("precision: [bf16]\n")
    assert dry_run("--study", "study.yaml") == {"bf16"}
    assert dry_run("--study", "study.yaml", "--precision", "fp16") == {"fp16"}


@pytest.mark.usefixtures("filled")
def test_a_groups_options_and_those_of_its_commands_both_count(files: Callable[..., None]) -> None:
    files(own="[results.show]\njson = true\n[results]\nstore = 'nowhere.sqlite'\n")
    assert run("results", "show").exit_code == 1  # nowhere.sqlite
    files(own="[results.show]\njson = true\n")
    assert json.loads(run("results", "show").stdout)["run_id"] == 3
    assert run("results", "show", "--format", "table").stdout.startswith("run 3")
    assert not run("results", "list").stdout.startswith("[")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bench\n", "gpualloc.toml:1: not TOML"),
        ("[bnch]\nsteps = 1\n", "gpualloc.toml:2: there is no command 'bnch'; choose one of "),
        ("\nstep = 1\n", "gpualloc.toml:2: 'step' stands before any section"),
        ("quiet = 'yes'\n", "gpualloc.toml:1: quiet is 'yes'; choose true or false"),
        ("[doctor]\nquik = true\n", "gpualloc.toml:2: 'doctor' has no option 'quik'; did you mean 'quick'?"),
        ("[doctor]\nquick = 3\n", "gpualloc.toml:2: --quick is a flag and 3 is not"),
        ("[doctor]\n\nformat = 'cvs'\n", "gpualloc.toml:3: --format: "),
        ("[results.shw]\njson = true\n", "gpualloc.toml:2: 'results' has no option 'shw'; did you mean 'show'?"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(text: str, message: str, files: Callable[..., None]) -> None:
    files(own=text)
    command = "results" if "results" in text else "doctor"
    for arguments in ([command], ["config"]):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"gpualloc: error: {message}"), done.stderr
        assert done.stderr.count("\n") == 1


def test_a_wrong_section_stops_only_its_own_command(files: Callable[..., None]) -> None:
    files(own="[bench]\nstpes = 3\n")
    assert run("results").exit_code == 0
    assert run("--help").exit_code == 0


def test_all_options_of_a_command_with_their_defaults(files: Callable[..., None]) -> None:
    assert settings("doctor")["doctor.quick"] == (False, "default", "")
    assert set(settings("results", "show")) == {
        f"results.show.{name}"
        for name in (
            "workload",
            "model",
            "precision",
            "strategy",
            "hook",
            "image-size",
            "status",
            "store",
            "json",
            "format",
            "quiet",
            "verbose",
            "debug",
        )
    }
    assert run("config", "dctor").stderr.endswith("; did you mean 'doctor'?\n")
    table = run("config", "doctor", GPUALLOC_DOCTOR_STRICT="1").stdout
    assert "doctor.strict" in table
    assert "environment GPUALLOC_DOCTOR_STRICT" in table
    assert "gpualloc.toml: not there" in table


def test_variables_of_nobody_are_told(files: Callable[..., None]) -> None:
    done = run("config", GPUALLOC_BENCH_STEP="3", GPUALLOC_STORE="/nowhere/results.sqlite")
    assert done.stderr == "gpualloc: warning: GPUALLOC_BENCH_STEP is no setting; did you mean 'GPUALLOC_BENCH_STEPS'?\n"
    assert "/nowhere/results.sqlite" in done.stdout


def test_every_option_of_every_command_can_be_set(files: Callable[..., None]) -> None:
    """By a variable of its own; but for the files, whose variables are older."""
    variables = [
        parameter.envvar
        for name in COMMANDS
        for command in walk(COMMANDS[name])
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.name != "help"
    ]
    assert variables.count(None) == 1  # watch --store
    assert len(set(variables)) == len(variables) > 150


def walk(command: Any) -> list[Any]:
    return [command, *(each for child in getattr(command, "commands", {}).values() for each in walk(child))]


def test_lines_are_found_in_files_as_people_write_them(files: Callable[..., None]) -> None:
    files(own="# mine\nquiet = true\n\n[bench]\n'image_size' = 100 # px\nci-percent=2\n\n  [results.show]\n  json = true\n")
    places = {".".join(key): setting.place for key, setting in read_settings_files().settings.items()}
    assert places == {
        "quiet": "gpualloc.toml:2",
        "bench.image-size": "gpualloc.toml:5",
        "bench.ci-percent": "gpualloc.toml:6",
        "results.show.json": "gpualloc.toml:9",
    }
