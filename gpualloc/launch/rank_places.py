"""Where each rank of an attempt is in its training, to name the one that the others waited for in vain.

Eight bytes in a file beside the rank's log, mapped into memory: written twice a batch in under a microsecond, read when a collective
timed out. A rank that hangs, in a loop, on a lock, on a file, writes nothing any more.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path

_SUFFIX = ".place"


class RankPlace:
    """This rank's place, kept where `gpualloc run` will look for it; nowhere where that did not start the process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._place = 0  # batches handed out and batches returned to step()
        self._mapped: mmap.mmap | None = None
        folder, rank = environment.get("GPUALLOC_LOG_FOLDER"), environment.get("RANK", "0")
        if folder is None:
            return
        try:
            with open(os.path.join(folder, f"rank{rank}{_SUFFIX}"), "w+b") as file:
                file.write(bytes(8))
                file.flush()
                self._mapped = mmap.mmap(file.fileno(), 8)
        except (OSError, ValueError):  # the training matters more
            return

    def take_batch(self) -> None:
        """The loader had one for this rank."""
        self._go_to(self._place // 2 * 2 + 1)

    def begin_step(self) -> None:
        """The script came back with its loss."""
        self._go_to(self._place // 2 * 2 + 2)

    def _go_to(self, place: int) -> None:
        self._place = place
        if self._mapped is not None:
            self._mapped[:] = place.to_bytes(8, "little")


def describe_missing(folder: Path) -> str:
    """Which ranks the others waited for and what these did last; "" where nobody kept a place.

    Args:
        folder: of an attempt's logs.
    """
    places = _read(folder)
    if len(places) < 2:
        return ""
    furthest = max(places.values())
    behind = {rank: place for rank, place in sorted(places.items()) if place < furthest}
    if not behind:
        return "all ranks are in the same pass: one of them hangs inside it"
    return "it waited for " + ", ".join(f"rank {rank}, which {_did(place)}" for rank, place in behind.items())


def _did(place: int) -> str:
    batch = place // 2 + 1
    if place % 2:
        return f"took batch {batch} and did not come to step() with it"
    return "took no batch" if place == 0 else f"took no batch after its batch {batch - 1}"


def _read(folder: Path) -> dict[int, int]:
    places = {}
    for path in folder.glob(f"rank*{_SUFFIX}"):
        rank = re.fullmatch(rf"rank(\d+){re.escape(_SUFFIX)}", path.name)
        try:
            value = path.read_bytes()
        except OSError:
            continue
        if rank and len(value) == 8:
            places[int(rank[1])] = int.from_bytes(value, "little")
    return places
