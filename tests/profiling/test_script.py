"""The user's script: what is refused, and how it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.profiling.recorder import Recorder
from gpualloc.profiling.script import Script, parse_script, run_script
from gpualloc.profiling.torchrun import Place, exchange, find_place

TRAIN = """
import torch
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def train(num_steps):
    for _ in range(num_steps):
        model(torch.ones(4, 8)).sum().backward()
        optimizer.step()
"""


def write(tmp_path: Path, text: str) -> Script:
    path = tmp_path / "train.py"
    path.write_text(text)
    return parse_script([str(path), "--lr", "0.1"])


def make_recorder(tmp_path: Path, *, stops: bool = True) -> Recorder:
    return Recorder(num_warmup_steps=1, num_steps=1, trace_path=tmp_path / "trace.json", stops=stops)  # needs 6 steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.py"], "does not exist; give the path of a Python file"),
        (["python", "train.py"], "write: gpualloc profile -- train.py"),
        (["python3.12", "train.py", "--lr"], "write: gpualloc profile -- train.py --lr"),
        (["torchrun", "train.py"], "put it in front: torchrun --no-python"),
        (["-m"], "-m names no module"),
        ([__file__[:-3] + ".txt"], "does not exist"),
    ],
)
def test_what_is_no_script_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_script(words)
    assert message in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.touch()
    with pytest.raises(UsageError, match=r"is not a \.py file"):
        parse_script([str(path)])


def test_it_runs_as_the_main_program_and_prints_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    before = sys.argv, sys.path[:]
    script = write(
        tmp_path,
        TRAIN
        + """
import os, sys, beside
print("hello from", __name__, sys.argv[1:], beside.WORD)
os.system("echo from a child")
train(100)
print("never said")
""",
    )
    recorder = make_recorder(tmp_path)
    assert run_script(script, recorder) == ()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "hello from __main__ ['--lr', '0.1'] beside" in captured.err
    assert "from a child" in captured.err
    assert "never said" not in captured.err
    assert recorder.num_done == recorder.num_needed == 6
    assert before == (sys.argv, sys.path)
    assert script.command == f"{tmp_path}/train.py --lr 0.1"


def test_a_script_that_goes_elsewhere_leaves_its_trace_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    script = write(tmp_path, "import os\nos.chdir('elsewhere')\n" + TRAIN + "train(100)")
    done = CliRunner().invoke(app, ["profile", "--steps", "1", "--warmup", "1", "--trace-dir", "traces", "--json", "--", script.name])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ranks"][0]["trace_path"] == str(tmp_path / "traces" / "rank0.json.gz")
    assert (tmp_path / "traces" / "rank0.json.gz").is_file()


def test_a_module_runs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_training_module.py").write_text(TRAIN + "train(100)")
    monkeypatch.chdir(tmp_path)
    script, recorder = parse_script(["-m", "a_training_module", "--lr"]), make_recorder(tmp_path)
    run_script(script, recorder)
    assert (recorder.is_done, script.command) == (True, "-m a_training_module --lr")


def test_no_stop_lets_it_finish(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_script(write(tmp_path, TRAIN + "train(20); print('finished')"), make_recorder(tmp_path, stops=False))
    assert "finished" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ending", "what"), [("raise ValueError('bad data')", "ValueError: bad data"), ("raise SystemExit(3)", "SystemExit: 3")]
)
def test_a_failure_before_the_trace_ends_the_profile(tmp_path: Path, ending: str, what: str) -> None:
    with pytest.raises(GpuallocError, match=f"ended with {what} after 2 steps"):
        run_script(write(tmp_path, f"{TRAIN}train(2)\n{ending}"), make_recorder(tmp_path))


def test_a_failure_after_the_trace_is_a_note(tmp_path: Path) -> None:
    notes = run_script(write(tmp_path, f"{TRAIN}train(5)\nraise ValueError('bad data')"), make_recorder(tmp_path))
    assert notes == ("the script ended with ValueError: bad data after the trace; operators were not counted",)


def test_an_early_end_is_no_failure_of_the_script(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    assert run_script(write(tmp_path, TRAIN + "train(2)\nraise SystemExit(0)"), recorder) == ()
    assert not recorder.is_traced


def test_ranks_of_another_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(UsageError, match="torchrun --nproc-per-node 4 --no-python gpualloc profile"):
        find_place()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_place() == Place(rank=3, world_size=4, num_local_ranks=2)
    monkeypatch.delenv("WORLD_SIZE")
    assert find_place() == Place(rank=0, world_size=1, num_local_ranks=1)
    assert exchange(find_place(), None, error="x") == []
