"""docs/first_hour.md, command by command, in a copy of the examples' folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpualloc.store import ResultsStore

pytestmark = [pytest.mark.clock, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]


def test_the_first_hour_runs_as_it_is_written(tmp_path: Path) -> None:
    for name in ("train_image.py", "train_language.py", "first_hour.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    environment = {**os.environ, "GPUALLOC_STORE": str(tmp_path / "results.sqlite"), "GPUALLOC_STATE": str(tmp_path / "state.sqlite")}
    environment["PYTHONPATH"] = str(ROOT)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs" / "first_hour.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    assert lines[:2] == ["pip install '.[data]'", "cd examples"]  # as it is here
    commands = [shlex.split(line)[1:] for line in lines[2:]]
    assert [command[0] for command in commands] == ["study", "study", "plan", "run", "status", "logs", "report"]
    printed = {}
    for command in commands:
        here = ["--device", "cpu"] if command[0] == "study" else []
        done = subprocess.run(
            [sys.executable, "-m", "gpualloc", *command, *here], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        printed[command[0]] = done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    planned = {assignment["workload"] for assignment in plan["assignments"]} | {slot["workload"] for slot in plan["measuring"]}
    assert planned == {"digits", "letters"}
    assert printed["status"].count("complete") == 2
    with ResultsStore(tmp_path / "results.sqlite") as store:
        rows = [row for run in store.runs() for row in store.measurements(run.run_id)[0]]
    assert {row.case.model for row in rows} == {"train_image:measured", "train_language:measured"}
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(name in page for name in ("digits", "letters", "train_image:measured"))
