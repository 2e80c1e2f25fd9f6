"""Progress of a rank that writes it to a file, told by the command that started it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_S = 0.5


@contextmanager
def told_progress(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Says each line of the file soon after it is written."""
    ended = threading.Event()

    def follow() -> None:
        num_said = 0
        while True:
            is_last = ended.wait(_LOOK_S)
            lines = file.read_text().splitlines() if file.exists() else []
            for line in lines[num_said:]:
                say(line)
            num_said = len(lines)
            if is_last:
                return

    follower = threading.Thread(target=follow, name="progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
