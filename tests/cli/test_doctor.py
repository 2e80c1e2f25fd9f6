"""`gpualloc doctor`: its table, its JSON and its exit code."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.doctor import Finding, run_checks
from gpualloc.doctor.storage import check_leftovers

SCRIPTS = Path(__file__).parents[1] / "doctor" / "scripts"

OK = Finding(name="torch", status="OK", seen="torch 2.13.0")
WARN = Finding(name="GPUs", status="WARN", seen="none: \x1b[31m[red]no driver", advice="install one")
FAIL = Finding(
    name="results store", status="FAIL", seen="not writable", advice="set GPUALLOC_STORE to a file in a directory that is writable"
)


@pytest.mark.parametrize(("findings", "exit_code"), [([OK], 0), ([OK, WARN], 0), ([OK, FAIL, WARN], 1)])
def test_exit_code_is_1_only_for_a_failure(findings: list[Finding], exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda **options: findings)
    for options in ([], ["--json"]):
        assert CliRunner().invoke(app, ["doctor", *options]).exit_code == exit_code


def test_json_has_every_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda **options: [OK, WARN, FAIL])
    data = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert [Finding(**row) for row in data] == [OK, WARN, FAIL]


@pytest.mark.parametrize("width", [60, 120])
def test_table_has_all_of_seen_and_advice(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda **options: [OK, WARN, FAIL])
    text = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": str(width)}).stdout
    assert max(map(len, text.splitlines())) <= width
    assert "none: \\x1b[31m[red]no driver install one" in " ".join(text.split())
    assert "FAIL results store not writable set GPUALLOC_STORE to a file in a directory that is writable" in " ".join(text.split())


def doctor(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def test_a_warning_counts_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda **options: [OK, WARN])
    assert [doctor(*options).exit_code for options in ([], ["--strict"])] == [0, 1]


def test_quick_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda **options: asked.append(len(options["measured_checks"])) or [OK])
    doctor()
    doctor("--quick")
    assert asked == [4, 0]


def test_a_script_is_checked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("gpualloc.doctor.run_checks")
    done = doctor("--script", str(SCRIPTS / "wrong.py"))
    assert done.exit_code == 1
    assert "FAIL" in done.stdout
    assert doctor("--script", str(SCRIPTS / "right_ddp.py"), "--strict").exit_code == 0
    row = json.loads(doctor("--script", str(SCRIPTS / "wrong.py"), "--json").stdout)[0]
    assert (row["name"], row["status"], row["place"].rpartition(":")[2].isdecimal()) == ("set-epoch", "WARN", True)


@pytest.mark.parametrize("options", [["--script", "train.py", "--fix"], ["--script", "train.py", "--quick"], ["--repair", "--fix"]])
def test_options_that_exclude_each_other(options: list[str]) -> None:
    assert doctor(*options).exit_code == 2


def test_fix_deletes_leftovers_and_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("gpualloc.doctor.CHECKS", (check_leftovers,))
    monkeypatch.setattr("gpualloc.doctor.run_checks", lambda checks=(check_leftovers,), **options: run_checks(checks))
    left = tmp_path / "gpualloc-bench-x"
    left.mkdir()
    os.utime(left, (1e9, 1e9))
    assert "WARN" in doctor("--quick").stdout
    assert left.exists()
    done = doctor("--quick", "--fix")
    assert done.stderr == "leftovers: 1 of 1 folders deleted\n"
    assert "OK" in done.stdout
    assert not left.exists()


def test_repair_keeps_a_copy_and_the_store_works_again(filled: Path) -> None:
    assert "whole, left as it is" in doctor("--repair").stdout
    filled.write_text("not a database, not even one page of it")
    assert CliRunner().invoke(app, ["results"]).exit_code == 1
    (row,) = json.loads(doctor("--repair", "--json").stdout)
    assert Path(row["copy"]).read_text() == "not a database, not even one page of it"
    assert CliRunner().invoke(app, ["results"]).exit_code == 0


@pytest.mark.usefixtures("store_path")
def test_where_nothing_was_kept_there_is_nothing_to_repair() -> None:
    assert doctor("--repair").stderr == "nothing to repair: gpualloc has no files here yet\n"
