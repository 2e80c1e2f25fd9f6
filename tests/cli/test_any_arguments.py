"""Random words for the arguments and options of every command: an answer or one line of error, never a traceback.

No command gets as far as its work: starting a process, waiting or serving ends it.
"""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gpualloc.cli import formats
from gpualloc.cli.app import COMMANDS, app
from gpualloc.errors import GpuallocError
from tests.fuzz.parsers import PARSERS

MANY = int(os.environ.get("GPUALLOC_FUZZ_EXAMPLES", "0"))  # of each command; 0: a few
ROOT = Path(__file__).parents[2]

NUMBERS = ("0", "1", "2", "-1", "1e9", "nan", "inf", "-0.0", "9" * 400, "9" * 5000, "1_0", "²", "٣", "0x10", "1.5", "1e400", str(2**63))
LISTS = ("1,2", "1..4:2", "4..1", "1..all", "all", ",", "fp16,fp32", "1.." + "9" * 400, "0..999999999999", "on,off", "single,ddp")
WORDS = (
    "",
    " ",
    "fp99",
    "mobilenet_v2",
    "gpt_small",
    "x" * 5000,
    "<script>",
    "%s{}",
    "é\u202e\u2028",
    "a=b",
    "latest",
    "all",
    "\n",
    "[red]",
    "-",
)
UNITS = ("5s", "1h30m", "99999d", "9" * 400 + "s", "2.50 EUR", "0 EUR", "9" * 400 + " EUR", "EUR 1", "$1", "100 MB", "1GiB")
FILES = (".", "/dev/null", "missing.yaml", "missing/dir/file.json", "workloads.yaml", "cluster.yaml", "rows.csv", "trace.csv", "model.json")
OTHER_FILES = (
    "prices.yaml",
    "link.yaml",
    "study.toml",
    "plan.json",
    "profile.json",
    "train.py",
    "report.html",
    "plot.png",
    "y" * 300 + ".json",
)
anything = st.one_of(*map(st.sampled_from, (NUMBERS, LISTS, WORDS, UNITS, FILES, OTHER_FILES)), st.text(max_size=8))


def _leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", {})
    return [row for name, child in children.items() for row in _leaves(child, (*path, name))] or [(path, command)]


LEAVES = dict(leaf for name in COMMANDS if " " not in name for leaf in _leaves(COMMANDS[name], (name,)))
LEAVES["bench", "--quality"] = COMMANDS["bench --quality"]


@st.composite
def lines(draw: st.DrawFn, path: tuple[str, ...]) -> list[str]:
    """The words behind a command's name."""
    asks_for_tracebacks = ("debug",)
    options = [each for each in LEAVES[path].params if each.param_type_name == "option" and each.name not in asks_for_tracebacks]
    num_arguments = sum(parameter.param_type_name == "argument" for parameter in LEAVES[path].params)
    words: list[str] = []
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else []:
        words.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        if not option.is_flag:
            allowed = re.findall(r"[a-z_0-9]+", option.metavar or "") or ["x"]  # of "cuda|cpu", and of PATH none
            words.append(draw(st.one_of(anything, st.sampled_from(allowed))))
    return words + draw(st.lists(anything, max_size=num_arguments + 1))


@pytest.fixture
def _workless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*arguments: object, **options: object) -> None:
        raise GpuallocError("stopped before the work")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "results.sqlite"))
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(subprocess.Popen, "__init__", no_work)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda self: None)
    monkeypatch.setattr(http.server.HTTPServer, "serve_forever", no_work)
    monkeypatch.setattr(time, "sleep", no_work)
    monkeypatch.setattr("gpualloc.plan.simulation.comparison.simulate", no_work)
    for name, reader in {"workloads.yaml": "workloads_yaml", "cluster.yaml": "cluster_yaml", "rows.csv": "forecast_rows"}.items():
        Path(name).write_bytes(PARSERS[reader].seeds()[0])
    for name, reader in {"trace.csv": "simulation_trace", "prices.yaml": "prices", "link.yaml": "link", "study.toml": "study_toml"}.items():
        Path(name).write_bytes(PARSERS[reader].seeds()[0])
    for name, reader in {"plan.json": "plan", "profile.json": "profile", "model.json": "forecast_model"}.items():
        Path(name).write_bytes(PARSERS[reader].seeds()[0])
    shutil.copy(ROOT / "examples" / "user_model.py", "user_model.py")
    Path("train.py").write_text("raise SystemExit(0)\n")


@pytest.mark.usefixtures("_workless")
@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_any_words_give_an_answer_or_an_error(path: tuple[str, ...]) -> None:
    @settings(max_examples=MANY or 6, deadline=None, derandomize=not MANY, suppress_health_check=list(HealthCheck))
    @given(words=lines(path))
    def answers(words: list[str]) -> None:
        always = ["--dry-run"] if path[0] == "run" else ["--once", "--no-store"] if path == ("watch", "run") else []
        try:
            done = CliRunner().invoke(app, [*path, *always, *words], input="n\n", env={"COLUMNS": "100"})
        finally:
            formats.choose("table")
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        assert done.exit_code in (0, 1, 2, 3), (done.exit_code, done.output)
        assert "error: unexpected" not in done.stderr, done.stderr
        assert "Traceback" not in done.output, done.output

    answers()


@pytest.mark.usefixtures("_workless")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["advise", "--dataset-size", "9" * 400], "--dataset-size of hundreds of digits is out of range"),
        (["bench", "--quality", "--workload", "video"], "--workload 'video' is unknown; choose of image, llm"),
        (["results", "delete", "3", "--store", "x" * 300], "File name too long; name another file or folder"),
        (["results", "compare", "--store", "x" * 300], "File name too long; name another file or folder"),
        (["status", "--state", "x" * 300], "File name too long; name another file or folder"),
        (["watch", "report", "--price-per-hour", "9" * 400 + " EUR"], "is out of range; choose an amount above 0"),
        (["bench", "--image-size", "1.." + "9" * 5000], "is not a list of whole numbers"),
    ],
)
def test_what_random_words_found(words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (1, 2)
    assert says in done.stderr.replace("\n", " ")
