"""`gpualloc results` and its sub-commands."""

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gpualloc.cli.app import app
from gpualloc.records import from_json, to_json
from tests.store.sample_measurements import cpu_run, gpu_run


def results(*arguments: str, exit_code: int = 0, typed: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["results", *arguments], input=typed)
    assert done.exit_code == exit_code, done.output
    return done


def json_of(*arguments: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(results(*arguments).stdout, parse_constant=refuse)


def finite(rows: list[Any]) -> list[Any]:
    """The measurements as JSON has them: NaN as null."""
    return [{key: None if value != value else value for key, value in to_json(row).items()} for row in rows]


@pytest.mark.usefixtures("filled")
def test_list_shows_every_run_newest_first() -> None:
    lines = results("list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1::2]] == ["3", "2", "1"]
    assert "running" in lines[1]
    assert "interrupted  3 of 3 ok" in lines[3]
    assert "complete     8 of 11 ok" in lines[5]
    assert lines[4].strip() == "AMD EPYC 7763 64-Core Processor: gpualloc bench --device cpu"


@pytest.mark.usefixtures("filled")
def test_results_alone_lists() -> None:
    assert results().stdout == results("list").stdout
    assert json_of("--json") == json_of("list", "--json")
    assert [run["run_id"] for run in json_of("--json")] == [3, 2, 1]
    assert json_of("--json")[2]["case_counts"] == {"ok": 8, "failed": 1, "oom": 1, "skipped": 1}


def test_options_before_the_subcommand_hold_for_it(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", "/nowhere/results.sqlite")
    assert results("--store", str(filled), "list").stdout == results("list", "--store", str(filled)).stdout
    assert json_of("--json", "--store", str(filled), "show", "1") == json_of("show", "1", "--json", "--store", str(filled))


def test_without_a_store_list_says_what_to_do_and_makes_none(store_path: Path) -> None:
    done = results("list")
    assert (done.stdout, done.stderr) == ("", f"no results yet at {store_path}: run gpualloc bench\n")
    assert json_of("list", "--json") == []
    for arguments in (["show"], ["export"], ["compare", "1", "2"], ["delete", "1", "--yes"]):
        assert f"gpualloc: error: no results yet at {store_path}: run gpualloc bench\n" == results(*arguments, exit_code=1).stderr
    assert not store_path.exists()


@pytest.mark.usefixtures("filled")
def test_show_prints_the_run_and_its_table() -> None:
    text = results("show", "2").stdout
    assert text.startswith("run 2, interrupted, 20")
    assert "gpualloc bench --device cpu" in text.splitlines()[0]
    assert "~712.04" in text
    assert results("show").stdout == results("show", "latest").stdout == results("show", "3").stdout


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("run", "rows"), [("1", gpu_run()), ("2", cpu_run())])
def test_show_json_round_trips_through_the_records(run: str, rows: list[Any]) -> None:
    shown = json_of("show", run, "--json")["measurements"]
    assert shown == json.loads(json.dumps(finite(rows)))
    assert finite([from_json(row) for row in shown]) == finite(rows)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["--workload", "llm"], 4),
        (["--model", "mobilenet_v2"], 7),
        (["--model", "mobilenet_v2,gpt_small"], 11),
        (["--precision", "fp16"], 11),
        (["--strategy", "single"], 2),
        (["--hook", "torch_fp16"], 2),
        (["--image-size", "200"], 7),
        (["--status", "oom,skipped"], 2),
        (["--strategy", "ddp", "--hook", "none", "--status", "ok"], 3),
    ],
)
def test_filters(filters: list[str], count: int) -> None:
    assert len(json_of("show", "1", "--json", *filters)["measurements"]) == count


@pytest.mark.usefixtures("filled")
def test_a_filter_that_matches_nothing_names_what_there_is() -> None:
    stderr = results("show", "1", "--strategy", "ddp", "--hook", "int8", exit_code=2).stderr
    assert stderr == "gpualloc: error: --hook 'int8' matches no case of run 1; what it can be here: gpualloc_fp16, none, torch_fp16\n"


@pytest.mark.usefixtures("filled")
def test_an_unknown_run_is_refused() -> None:
    assert "no run 9 in" in results("show", "9", exit_code=1).stderr
    assert "which holds: 3, 2, 1; see gpualloc results list" in results("export", "9", exit_code=1).stderr
    for name in ("newest", "-1", "1.5", "²", "9" * 30, ""):
        assert "give a number of 'gpualloc results list', or 'latest'" in results("show", "--", name, exit_code=2).stderr


def test_damaged_rows_are_named_on_stderr(filled: Path) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute("UPDATE measurements SET measurement = '{' WHERE run_id = 2 AND measurement LIKE '%\"single\"%'")
    connection.close()
    for arguments in (["show", "2", "--json"], ["export", "2"], ["show", "2"]):
        assert f"gpualloc: warning: run 2, case {cpu_run()[0].case.key()} in {filled} is damaged" in results(*arguments).stderr
    assert len(json_of("show", "2", "--json")["measurements"]) == 2


def test_export_csv(filled: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    done = results("export", "1", "-o", str(output))
    assert (done.stdout, done.stderr) == ("", f"11 cases of run 1 written to {output}\n")
    assert len(list(csv.DictReader(io.StringIO(output.read_bytes().decode(), newline="")))) == 11
    assert results("export", "1").stdout_bytes == output.read_bytes()
    assert output.read_bytes().count(b"\r\n") == 12


@pytest.mark.usefixtures("filled")
def test_export_json_equals_show_json(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    results("export", "1", "--format", "json", "-o", str(output))
    assert json.loads(output.read_text()) == json_of("show", "1", "--json") == json_of("export", "1", "--json")


@pytest.mark.usefixtures("filled")
def test_export_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    assert "choose another file with -o" in results("export", "-o", str(tmp_path), exit_code=1).stderr
    assert "csv" in results("export", "--format", "xlsx", exit_code=2).stderr


@pytest.mark.usefixtures("filled")
def test_compare_matches_cases_and_gives_verdicts() -> None:
    done = results("compare", "1", "3")
    assert "mobilenet_v2 200px fp16 ddp/none x4, 64 per rank 29.11 26.20 0.900 faster" in " ".join(done.stdout.split())
    assert done.stdout.split("only in run 1:")[1].split("\n")[1] == "  gpt_small 1024tok fp16 single x1, 8 per rank"
    assert "only in run 3" not in done.stdout
    assert done.stderr == ""
    assert "1.111  slower" in results("compare", "3", "1").stdout


@pytest.mark.usefixtures("filled")
def test_compare_json() -> None:
    data = json_of("compare", "1", "latest", "--json")
    assert (data["run_id_a"], data["run_id_b"], len(data["compared"]), len(data["only_in_a"])) == (1, 3, 7, 4)
    first = data["compared"][0]
    assert (first["verdict"], round(first["step_time_ratio"], 6)) == ("faster", 0.9)
    assert from_json(first["a"]).case == from_json(first["b"]).case == gpu_run()[0].case


@pytest.mark.usefixtures("filled")
def test_compare_warns_of_different_environments() -> None:
    done = results("compare", "1", "2")
    assert "warning: the runs were made in different environments: device_name: NVIDIA H200 -> AMD" in done.stderr
    assert "runs 1 and 2 have no case in common" in done.stdout
    assert "torch_version: 2.13.0+cu130 -> 2.13.0+cpu" in json_of("compare", "1", "2", "--json")["environment_differences"]


@pytest.mark.usefixtures("filled")
def test_delete_asks_first() -> None:
    for answer in ("n\n", ""):
        assert results("delete", "2", typed=answer, exit_code=1).stderr.endswith("Aborted.\n")
    assert len(json_of("--json")) == 3
    assert "run 2 deleted, 3 cases" in results("delete", "2", typed="y\n").stdout
    assert json_of("delete", "3", "--yes", "--json") == {"deleted_run_id": 3, "deleted_cases": 7}
    assert [run["run_id"] for run in json_of("--json")] == [1]
