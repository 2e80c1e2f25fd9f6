"""Where results are kept."""

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
