"""The Ray Train example on a real Ray cluster of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def address() -> Iterator[str]:
    pytest.importorskip("ray.train", reason="needs pip install 'ray[train]'", exc_type=ImportError)
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    cluster = Cluster()
    cluster.add_node(num_cpus=3, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.soak
def test_the_example_trains_over_two_workers_with_half_the_bytes(address: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RAY_ADDRESS": address,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/ray_train_hook.py"), "bf16"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("gpualloc/")]
    figures = {name: float(value) for name, value in re.findall(r"(\S+) ([\d.e+-]+)", line)}
    assert 0 < figures["loss"] < 0.5  # the sine of a sum of eight normals has a variance of 0.5
    assert figures["gpualloc/steps"] == 16  # 4 epochs of 128 samples over 2 workers in batches of 16
    assert figures["gpualloc/wire_mb_per_step"] == pytest.approx(321 * 2 / 1e6)
    assert figures["gpualloc/nonfinite_steps"] == 0
