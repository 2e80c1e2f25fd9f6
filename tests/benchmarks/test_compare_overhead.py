"""The comparison of what hooks cost, as it is called; its arithmetic on made figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare_overhead

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]
NUM_BUCKETS = 5
SHORT = ["--buckets", str(NUM_BUCKETS), "--rounds", "2", "--steps", "2", "--warmup", "2"]


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(ROOT / "benchmarks/compare_overhead.py"), *SHORT, "--output", str(folder / "result.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text()), done.stdout


def test_every_hook_is_timed_beside_ddp_without_one(tmp_path: Path) -> None:
    result, table = run(tmp_path, "--device", "cpu")
    assert [row["hook"] for row in result["times"]] == list(compare_overhead.HOOKS)
    assert [line.split()[0] for line in table.splitlines()[1:7]] == list(compare_overhead.HOOKS)
    for row in result["times"]:
        assert 0 < row["host_us_per_bucket"]["median"] <= row["backward_us_per_bucket"]["median"] < row["step_us_per_bucket"]["median"]
        assert row["host_us_per_bucket"]["p10"] <= row["host_us_per_bucket"]["p90"]
    assert all(len(times) == 2 for figures in result["round_times_s"].values() for times in figures.values())
    assert result["memory"] == {}
    assert result["environment"]["torch_version"]


def test_ratios_and_differences_are_formed_within_rounds() -> None:
    """The second of three rounds is twice as slow as a whole."""
    rounds = {"none": [1.0, 2.0, 1.0], "torch_fp16": [1.5, 3.0, 1.5]}
    base, hook = compare_overhead.rows({name: dict.fromkeys(compare_overhead.TIMES, of) for name, of in rounds.items()}, 100)
    assert base["host_ratio"] == {"median": 1.0, "p10": 1.0, "p90": 1.0}
    assert hook["step_ratio"] == {"median": 1.5, "p10": 1.5, "p90": 1.5}
    assert hook["host_us_per_bucket"]["median"] == pytest.approx(15_000)
    assert hook["host_added_us_per_bucket"]["median"] == pytest.approx(5_000)
    assert hook["host_added_us_per_bucket"]["p90"] == pytest.approx(9_000)  # of 5000, 5000 and 10000, interpolated


@pytest.mark.gpu
@pytest.mark.nccl
def test_memory_beyond_ddps_own(tmp_path: Path) -> None:
    result, table = run(tmp_path, "--device", "cuda", "--memory-models", "mobilenet_v2", "--hooks", "none,torch_fp16,gpualloc_fp16")
    memory = result["memory"]["mobilenet_v2"]
    gradient_bytes = memory["none"]["gradient_bytes"]
    assert gradient_bytes == pytest.approx(4 * 3.5e6, rel=0.01)
    for hook in ("torch_fp16", "gpualloc_fp16"):
        assert memory["none"]["steps_bytes"] < memory[hook]["steps_bytes"] < memory["none"]["steps_bytes"] + 2 * gradient_bytes
    assert "mobilenet_v2, MiB" in table
