"""Where results go."""

from __future__ import annotations

import os

from gpualloc.doctor.finding import Finding
from gpualloc.errors import StoreError
from gpualloc.store import ResultsStore, default_store_path


def check_results_store() -> Finding:
    """Whether the default results file can be read and written; makes nothing."""
    path = default_store_path()
    if path.exists():
        try:
            with ResultsStore(path, create=False, lock_timeout_s=1.0) as store:
                count = len(store.runs())
        except StoreError as error:
            return Finding(name="results store", status="FAIL", seen=str(error), advice="or set GPUALLOC_STORE to another file")
        if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
            return Finding(name="results store", status="OK", seen=f"{path}, {count} runs")
        return Finding(
            name="results store",
            status="FAIL",
            seen=f"{path} is not writable",
            advice="make it and its directory writable, or set GPUALLOC_STORE",
        )
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Finding(name="results store", status="OK", seen=f"{path}, made by the first gpualloc bench")
    seen = f"{path} cannot be made: {nearest} is not a writable directory"
    return Finding(name="results store", status="FAIL", seen=seen, advice="set GPUALLOC_STORE to a file in a writable directory")
