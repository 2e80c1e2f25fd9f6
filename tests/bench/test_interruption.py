from __future__ import annotations

import os
import signal

import pytest

from gpualloc.bench.interruption import Interrupted, interruptible


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_raises_and_later_ones_wait_for_the_cleaning_up(number: int, exit_code: int) -> None:
    before = signal.getsignal(number)
    cleaned_up = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned_up.append(True)

    with pytest.raises(Interrupted) as caught, interruptible():
        work()
    assert cleaned_up
    assert caught.value.exit_code == exit_code
    assert signal.getsignal(number) == before
