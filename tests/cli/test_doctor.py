"""`gpualloc doctor`: its table, its JSON and its exit code."""

import json

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.doctor import Finding

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
