"""Records samples as they come. A store that fails meanwhile does not end the watching: what it did not take is offered again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from gpualloc.errors import StoreError
from gpualloc.watching.sampler import Overhead
from gpualloc.watching.samples import DeviceSample
from gpualloc.watching.store import WatchStore

_MAX_WAITING = 20_000  # samples: some 20 MB
_PRUNE_EVERY_S = 3600.0
_LOCK_TIMEOUT_S = 2.0  # of another writer; then the samples wait for the next round


class Recorder:
    """Args: keep_days: older samples are deleted, also those of other watches; None keeps all.

    Raises:
        StoreError: the store cannot be opened. Later failures are in `problem`.
    """

    def __init__(self, path: Path, *, host: str, interval_s: float, keep_days: float | None) -> None:
        self.path = path
        self.problem: str | None = None  # why the last attempt failed
        self.num_recorded = 0
        self.num_dropped = 0  # of those that were too many to wait
        self._keep_days = keep_days
        self._waiting: deque[DeviceSample] = deque()
        self._store = WatchStore(path, lock_timeout_s=_LOCK_TIMEOUT_S)
        try:
            self._watch_id = self._store.begin_watch(host=host, interval_s=interval_s)
            self._prune()
        except BaseException:
            self.close()
            raise

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def record(self, samples: Sequence[DeviceSample], overhead: Overhead) -> None:
        """Commits the samples, with those still waiting, before it returns; or says in `problem` why not."""
        self._waiting.extend(samples)
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft()
            self.num_dropped += 1
        try:
            self._store.add(self._watch_id, list(self._waiting), overhead)
            self.num_recorded += len(self._waiting)
            self._waiting.clear()
            if time.monotonic() - self._pruned_at_s > _PRUNE_EVERY_S:
                self._prune()
            self.problem = None
        except StoreError as error:
            self.problem = str(error)

    def close(self) -> None:
        self._store.__exit__(None, None, None)

    def _prune(self) -> None:
        self._pruned_at_s = time.monotonic()
        if self._keep_days is not None:
            self._store.prune(before_unix_s=time.time() - self._keep_days * 86400)
