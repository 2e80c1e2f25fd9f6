"""When to sample, and when to end."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Clock:
    """Beats every `interval_s` until `duration_s` is over or a signal asks to end; a second signal ends the process at once."""

    def __init__(self, *, interval_s: float, duration_s: float | None) -> None:
        self._interval_s, self._duration_s = interval_s, duration_s
        self.ended_by: signal.Signals | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Iterator[None]]:
        """Inside, SIGINT, SIGTERM and SIGHUP end the beats given and nothing else: a sample in the making is finished."""
        woken, waker = socket.socketpair()
        with woken, waker:
            waker.setblocking(False)
            before = {number: signal.signal(number, self._note) for number in _SIGNALS if not _is_let_pass(number)}
            before_fd = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
            try:
                yield self._beats(woken)
            finally:
                signal.set_wakeup_fd(before_fd)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.ended_by = signal.Signals(number)
        for each in _SIGNALS:
            if not _is_let_pass(each):
                signal.signal(each, signal.SIG_DFL)

    def _beats(self, woken: socket.socket) -> Iterator[None]:
        start_s = time.monotonic()
        end_s = float("inf") if self._duration_s is None else start_s + self._duration_s
        num_beats = 0
        while self.ended_by is None:
            yield None
            elapsed_s = time.monotonic() - start_s
            num_beats = max(num_beats + 1, int(elapsed_s / self._interval_s))  # beats that were missed are left out
            next_s = start_s + num_beats * self._interval_s
            if next_s > end_s + 1e-3:
                return
            while self.ended_by is None and (left_s := next_s - time.monotonic()) > 0:
                if select.select([woken], [], [], left_s)[0]:
                    woken.recv(1)  # one byte a signal, of those that do not end the beats as well


def _is_let_pass(number: signal.Signals) -> bool:
    """Under nohup a hang-up is ignored, and stays so."""
    return number is signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
