"""Results kept in one SQLite file: every finished case is on disk before the next one starts."""

from gpualloc.store.comparison import ComparedCase, Comparison, compare, environment_differences
from gpualloc.store.csv_export import to_csv
from gpualloc.store.paths import default_store_path, default_watch_store_path
from gpualloc.store.results import ResultsStore, Run, RunStatus

__all__ = [
    "ComparedCase",
    "Comparison",
    "ResultsStore",
    "Run",
    "RunStatus",
    "compare",
    "default_store_path",
    "default_watch_store_path",
    "environment_differences",
    "to_csv",
]
