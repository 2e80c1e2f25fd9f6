"""Where results and what was watched are kept."""

from __future__ import annotations

import os
from pathlib import Path


def default_store_path() -> Path:
    """$GPUALLOC_STORE, else gpualloc/results.sqlite under $XDG_DATA_HOME, else under ~/.local/share."""
    chosen = os.environ.get("GPUALLOC_STORE")
    if chosen:
        return Path(chosen).expanduser()
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG base directory specification: a relative path is invalid and must be ignored.
    root = Path(data_home) if os.path.isabs(data_home) else Path.home() / ".local" / "share"
    return root / "gpualloc" / "results.sqlite"


def default_watch_store_path() -> Path:
    """$GPUALLOC_WATCH_STORE, else watch.sqlite beside the results."""
    chosen = os.environ.get("GPUALLOC_WATCH_STORE")
    return Path(chosen).expanduser() if chosen else default_store_path().with_name("watch.sqlite")
