"""What torch.profiler shows of the hook: a Chrome trace of a few steps, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpualloc
from tests.comm.profiled import profiled
from tests.comm.scenarios import Known, coefficients, wrap
from tests.ranks import run_ranks

NUM_STEPS = 3


def _trace(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> int:
    """Number of buckets of the model whose steps are in the file."""
    model = wrap(Known(), "cpu")
    gpualloc.register_comm_hook(model, **options)
    for step in range(2):  # buckets are laid out anew after the first
        model(coefficients(rank, step), True).backward()
    with profiled() as profiler:
        for step in range(NUM_STEPS):
            model(coefficients(rank, step), True).backward()
    profiler.export_chrome_trace(f"{folder}/{rank}.json")
    return len(model._get_ddp_logging_data()["bucket_sizes"].split(","))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"wire": "fp16"}, []), ({"wire": "int8"}, []), ({"wire": "bf16", "accumulate": "wire"}, ["narrow to bf16"])],
    ids=["own thread", "8 bits", "gloo's thread"],
)
def test_a_trace_names_what_the_hook_does(options: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    (num_buckets, _) = run_ranks(_trace, 2, str(tmp_path), options)
    for rank in range(2):
        path = tmp_path / f"{rank}.json"
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "user_annotation"]
        ours = [event for event in events if event["name"].startswith("gpualloc::")]
        for bucket in range(num_buckets):
            assert [event["name"] for event in ours].count(f"gpualloc::hook, bucket {bucket}") == NUM_STEPS
        for name in named:
            spans = [event for event in ours if event["name"] == f"gpualloc::{name}"]
            assert len(spans) >= NUM_STEPS * num_buckets
            assert all(span["dur"] > 0 for span in spans)
