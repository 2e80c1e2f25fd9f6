"""docs/doctor.md and docs/command_line.md say what there is."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.doctor import CHECKS, MEASURED_CHECKS
from gpualloc.doctor.communication import TRAPS
from gpualloc.doctor.script import SCRIPT_CHECKS

DOCS = Path(__file__).parents[2] / "docs"
DOCTOR, COMMAND_LINE = (DOCS / "doctor.md").read_text(), (DOCS / "command_line.md").read_text()
ROWS = [line.split("|")[1].strip() for line in DOCTOR.splitlines() if line.startswith("| ")]


def test_every_check_rule_and_trap_is_documented() -> None:
    checks = {name.strip() for row in ROWS for name in row.split(",")} - {"Check", "Rule", ""}
    assert {row.strip("`") for row in ROWS if row.startswith("`")} == set(SCRIPT_CHECKS)
    assert len([name for name in checks if not name.startswith("`")]) == len(CHECKS) + len(MEASURED_CHECKS)
    assert [trap.name for trap in TRAPS if f"`{trap.name}" not in DOCTOR] == []


def test_the_settings_file_of_the_docs_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```toml\n(.*?)```", COMMAND_LINE, re.DOTALL)
    Path("gpualloc.toml").write_text(example)
    done = CliRunner().invoke(app, ["config", "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count('"source": "file"') == example.count(" = ")


COMMANDS = sorted(set(re.findall(r"^    gpualloc (.*)$", DOCTOR + COMMAND_LINE, re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_is_understood(line: str) -> None:
    """With --help at its end, where an option before it that does not exist is still refused."""
    assert CliRunner().invoke(app, [*shlex.split(line), "--help"]).exit_code == 0
