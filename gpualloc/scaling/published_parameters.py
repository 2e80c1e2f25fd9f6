"""Gradient bytes of well-known models by name, for rows that do not tell theirs."""

from __future__ import annotations

import csv
import functools
from importlib.resources import files

_BYTES_OF_FP32 = 4  # mixed precision averages gradients in fp32 too, unless a hook shortens them


def published_gradient_bytes(job: str) -> float | None:
    """Four bytes for each published parameter; None for names that are not in published_parameters.csv, which has the sources."""
    parameters = _parameters().get(job.lower())
    return None if parameters is None else _BYTES_OF_FP32 * parameters


@functools.cache
def _parameters() -> dict[str, float]:
    text = files("gpualloc.scaling").joinpath("published_parameters.csv").read_text()
    return {name: float(row["parameters"]) for row in csv.DictReader(text.splitlines()) for name in row["names"].split()}
