"""Beats: on time, without those that were missed, until the end or a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpualloc.watching.clock import Clock

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]


def beat_times_s(clock: Clock, *, work_s: tuple[float, ...] = ()) -> list[float]:
    times_s, start_s = [], time.monotonic()
    with clock.running() as beats:
        for number, _ in enumerate(beats):
            times_s.append(time.monotonic() - start_s)
            time.sleep(work_s[number] if number < len(work_s) else 0)
    return times_s


def test_beats_come_in_time_and_end_with_the_duration() -> None:
    times_s = beat_times_s(Clock(interval_s=0.1, duration_s=0.4), work_s=(0.05,) * 5)
    assert len(times_s) == 5
    assert all(at_s >= number * 0.1 - 0.01 for number, at_s in enumerate(times_s))
    assert times_s[-1] < 0.4 + 0.3


def test_missed_beats_are_left_out() -> None:
    times_s = beat_times_s(Clock(interval_s=0.1, duration_s=1.0), work_s=(0.75,))
    assert len(times_s) <= 5  # the first, then none before 0.75 s
    assert times_s[1] >= 0.7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_beats_at_once_and_its_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    clock = Clock(interval_s=60.0, duration_s=None)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    start_s = time.monotonic()
    if number == signal.SIGHUP and before == signal.SIG_IGN:
        pytest.skip("hang-ups are ignored here")
    assert len(beat_times_s(clock)) == 1
    assert time.monotonic() - start_s < 10
    assert clock.ended_by == number
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_during_the_work_lets_it_finish() -> None:
    clock = Clock(interval_s=0.01, duration_s=None)
    finished = 0
    with clock.running() as beats:
        for _ in beats:
            os.kill(os.getpid(), signal.SIGTERM)
            finished += 1
    assert finished == 1


def test_another_signal_with_a_handler_neither_ends_nor_hastens_the_beats() -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        cpu_before_s = time.process_time()
        assert len(beat_times_s(Clock(interval_s=0.4, duration_s=0.8))) == 3
        assert time.process_time() - cpu_before_s < 0.2  # it does not spin
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_second_signal_ends_a_process_that_hangs() -> None:
    code = (
        "import time; from gpualloc.watching.clock import Clock\n"
        "with Clock(interval_s=1.0, duration_s=None).running() as beats:\n"
        "    for _ in beats:\n        print('hangs', flush=True); [time.sleep(1) for _ in range(60)]"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.stdout.close()
