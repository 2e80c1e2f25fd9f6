"""Every class of verdict, provoked by a training of its own: on a CPU here, on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
COMMAND = [sys.executable, "-c", "from gpualloc.cli.app import main; main()", "profile"]
ONE_RANK = {
    "slow_loader": "input-bound",
    "many_tiny_ops": "launch-bound",
    "big_matmul": "compute-bound",
    "big_elementwise": "memory-bound",
}
TWO_RANKS = {"slow_allreduce": "communication-bound", "uneven_ranks": "imbalance"}


def profile_script(name: str, folder: Path, *, device: str, num_ranks: int = 1) -> dict[str, Any]:
    """The profile as JSON."""
    command = [*COMMAND, "--steps", "5", "--warmup-steps", "3", "--trace-dir", str(folder), "--json", "--", str(SCRIPTS / f"{name}.py")]
    if num_ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--no-python", *command]
    environment = {**os.environ, "PROFILE_TEST_DEVICE": device, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    profile: dict[str, Any] = json.loads(done.stdout)
    assert len(profile["ranks"]) == num_ranks
    assert [rank["device"] for rank in profile["ranks"]] == [device] * num_ranks
    assert all(Path(rank["trace_path"]).is_file() for rank in profile["ranks"])
    return profile


def check(profile: dict[str, Any], kind: str) -> None:
    verdict = profile["verdict"]
    assert verdict["kind"] == kind, json.dumps(profile, indent=1)
    assert verdict["sentence"].startswith(f"{kind}: ")
    assert verdict["next_step"] in verdict["sentence"]


@pytest.mark.parametrize(("name", "kind"), ONE_RANK.items())
def test_on_a_cpu(name: str, kind: str, tmp_path: Path) -> None:
    profile = profile_script(name, tmp_path, device="cpu")
    check(profile, kind)
    assert profile["ranks"][0]["mfu"] is None


@pytest.mark.parametrize(("name", "kind"), TWO_RANKS.items())
def test_on_two_gloo_ranks(name: str, kind: str, tmp_path: Path) -> None:
    check(profile_script(name, tmp_path, device="cpu", num_ranks=2), kind)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kind"), ONE_RANK.items())
def test_on_a_gpu(name: str, kind: str, tmp_path: Path) -> None:
    profile = profile_script(name, tmp_path, device="cuda")
    check(profile, kind)
    rank = profile["ranks"][0]
    assert 0 < rank["gpu_busy"] <= 1
    if kind == "compute-bound":
        assert rank["gpu_busy"] > 0.8
        assert rank["mfu"] is None or 0.3 < rank["mfu"] < 1


@pytest.mark.gpu
@pytest.mark.nccl
@pytest.mark.parametrize(("name", "kind"), TWO_RANKS.items())
def test_on_two_nccl_ranks_that_share_a_gpu(name: str, kind: str, tmp_path: Path) -> None:
    check(profile_script(name, tmp_path, device="cuda", num_ranks=2), kind)
