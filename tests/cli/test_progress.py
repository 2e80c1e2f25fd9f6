"""Progress of the long commands: a bar with the time left on a terminal, few lines in a file, nothing with --quiet."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpualloc.bench import isolation, runner
from gpualloc.cli import progress
from gpualloc.cli.app import app
from gpualloc.cli.progress import Pace, left_text, show_parts, show_working
from gpualloc.plan.simulation import comparison
from gpualloc.quality import engine
from gpualloc.quality.options import PlannedRun
from gpualloc.quality.records import CurvePoint, TrainingRun
from gpualloc.records import BenchCase, Measurement
from gpualloc.rehearsal import script_run
from gpualloc.rehearsal.script_run import RehearsedSize
from gpualloc.rehearsal.step_timer import TimedSteps
from tests.store.sample_measurements import measured

PART_S = 0.1


class Terminal:
    """A pseudo-terminal of 120 columns in stderr's place; `text` has every line it ever showed, `raw` what was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw = b""
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        for name, value in (("TERM", "xterm"), ("COLUMNS", "120")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stderr", os.fdopen(slave, "w"))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while written := os.read(self._master, 4096):
                self.raw += written
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        sys.stderr.close()
        self._reader.join()
        os.close(self._master)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode()).replace("\r", "\n")


@pytest.fixture
def long_parts(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases, trainings and rehearsals are made up, and each of them and of the simulations takes PART_S."""

    def run_case(case: BenchCase, **settings: Any) -> Measurement:
        time.sleep(PART_S)
        return measured(case, 0.1, wall_time_s=PART_S, environment=settings["environment"])

    def run_planned(plan: PlannedRun, *_: Any) -> TrainingRun:
        time.sleep(PART_S)
        curve = (CurvePoint(step=10, train_loss=1.0, test_loss=1.0),)
        fields: dict[str, Any] = {"step_time_s": 0.1, "train_time_s": PART_S, "curve": curve}
        return TrainingRun(case=plan.cell.case, learning_rate=plan.learning_rate, status="ok", **fields)

    def rehearse(script: Any, num_gpus: int, *_: Any, **__: Any) -> RehearsedSize:
        time.sleep(PART_S)
        times = {"step_time_s": 0.1, "step_time_low_s": 0.1, "step_time_high_s": 0.1, "compute_time_s": 0.1, "comm_time_s": 0.0}
        steps = TimedSteps(device="CPU", num_steps=1, comm_bytes=0.0, num_collectives=0.0, peak_memory_bytes=1, **times)
        return RehearsedSize(num_gpus=num_gpus, steps=steps)

    simulate = comparison.simulate

    def simulated(*arguments: Any) -> Any:
        time.sleep(PART_S)
        return simulate(*arguments)

    monkeypatch.setattr(runner, "run_case", run_case)
    monkeypatch.setattr(isolation, "why_busy", lambda device: None)
    monkeypatch.setattr(engine, "_run_planned", run_planned)
    monkeypatch.setattr(script_run, "rehearse_script", rehearse)
    monkeypatch.setattr(comparison, "simulate", simulated)


COMMANDS = {
    # command -> (what it works through, the piped lines)
    "bench --device cpu --workload image --image-size 32": (r" 1/4 .* mobilenet_v2 32px", r"\[\d/4\] mobilenet_v2 .*: 100.00 ms a step"),
    "study --device cpu --image-size 32": (r" 1/2 .* mobilenet_v2 32px", r"\[\d/2\] mobilenet_v2 .*: 100.00 ms a step"),
    "bench --quality --device cpu --workload llm --hook none --seeds 4": (r" 1/4 .* seed 1", r"\[\d/4\] gpt_tiny .* seed \d: loss .*"),
    "rehearse --gpus 1,2,4 --link nvlink4 -- {script}": (r" 1/3 .* as one of 2 GPUs", r"\[\d/3\] .* as one of \d GPUs: 100.00 ms a step"),
    "simulate --jobs 4 --hours 0.2 --policy fifo,las --seeds 2": (r" 1/4 .* las, seed 0, 4 jobs", r"\[4/4\] las, seed 1, .* h a job"),
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, tmp_path: Path, long_parts: None) -> tuple[list[str], str, str]:
    (tmp_path / "train.py").write_text("pass")
    return [word.format(script=tmp_path / "train.py") for word in request.param.split()], *COMMANDS[request.param]


def call(words: list[str]) -> int:
    try:
        app(words, standalone_mode=False)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.mark.usefixtures("capsys")
def test_a_terminal_shows_how_far_it_is_and_the_time_left_and_nothing_at_the_end(
    command: tuple[list[str], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, shown, line = command
    monkeypatch.setattr(progress, "_REFRESH_HZ", 50)  # parts are short here
    terminal = Terminal(monkeypatch)
    assert call(words) == 0
    lines = terminal.close().splitlines()
    bars = [each for each in lines if re.search(shown, each)]
    assert any(re.search(r"about \d+ s left|any moment", each) for each in bars), lines
    assert not [each for each in lines if re.fullmatch(line, each)]
    *_, after = terminal.raw.split(b"\x1b[?25h")  # the bar is the last it shows before it gives the cursor back
    assert re.match(rb"\r\x1b\[1A\x1b\[2K", after)


def test_a_file_gets_a_line_for_each_part_at_most(command: tuple[list[str], str, str]) -> None:
    words, _, line = command
    told = CliRunner().invoke(app, words).stderr
    lines = [each for each in told.splitlines() if each.startswith("[")]
    total = int(line[line.index("/") + 1])
    assert 1 <= len(lines) <= total
    assert lines[-1].startswith(f"[{total}/{total}] ")
    assert all(re.fullmatch(line, each) for each in lines)
    assert "\x1b" not in told


def test_quiet_says_nothing_even_on_a_terminal(command: tuple[list[str], str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words, _, _ = command
    terminal = Terminal(monkeypatch)
    assert call(["--quiet", *words]) == 0
    assert terminal.close() == ""


def test_work_of_unknown_length_shows_its_time_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with show_working("fitting"):
        pass
    assert capsys.readouterr().err == ""
    terminal = Terminal(monkeypatch)
    with show_working("fitting"):
        time.sleep(0.1)
    assert re.search(r"fitting 0:00:00", terminal.close())


def test_short_parts_are_told_every_ten_seconds_and_the_last(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with show_parts([1.0] * 25, are_short=True) as parts:
        for number in range(25):
            parts.begin(str(number))
            now_s += 0.9
            parts.end(f"part {number}")
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["[12/25]", "[24/25]", "[25/25]"]


@pytest.fixture
def pace() -> tuple[Callable[[float], None], Callable[..., Pace]]:
    """(lets so many seconds pass, makes a pace)."""
    now_s = [0.0]
    return lambda seconds: now_s.__setitem__(0, now_s[0] + seconds), lambda **fields: Pace(clock_s=lambda: now_s[0], **fields)


def test_the_time_left_follows_what_the_parts_took(pace: Any) -> None:
    wait, make = pace
    parts = make(weights=[1.0, 2.0, 0.0, 3.0], are_seconds=False)
    assert parts.left_s() is None
    parts.begin()
    wait(10)
    assert parts.left_s() is None
    parts.end()
    assert parts.left_s() == 50
    parts.begin()
    wait(5)
    assert parts.left_s() == 45
    wait(100)  # longer than it should: then the rest of it counts as 0
    assert parts.left_s() == 30
    wait(-80)
    parts.end()  # 25 for a weight of 2
    assert parts.left_s() == pytest.approx(35 / 3 * 3)
    parts.end()  # was done before: tells nothing of the rest
    assert parts.left_s() == pytest.approx(35)
    parts.begin()
    wait(35)
    parts.end()
    assert parts.left_s() is None


def test_expected_seconds_tell_before_a_part_has_ended(pace: Any) -> None:
    wait, make = pace
    parts = make(weights=[10.0, 20.0], are_seconds=True)
    assert parts.left_s() == 30
    parts.begin()
    wait(4)
    assert parts.left_s() == 26
    wait(16)
    parts.end()  # took twice what was expected
    assert parts.left_s() == 40


def test_time_left_in_words() -> None:
    seconds = (None, 0.4, 12.4, 59.6, 600, 89 * 60, 2 * 3600)
    words = ["", "any moment", "about 12 s left", "about 1 min left", "about 10 min left", "about 89 min left", "about 2.0 h left"]
    assert [left_text(each) for each in seconds] == words
