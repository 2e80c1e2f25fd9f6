"""Jobs on a real Ray cluster of several raylets on this machine."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpualloc.plan.records import PlannedDevice
from tests.launch import plans

SCRIPTS = plans.ROOT / "tests/launch/scripts"


def small_cluster(*, num_nodes: int) -> Any:
    """A head without resources, and nodes with two cores and two GPUs that are only counted, a raylet each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    cluster = Cluster()
    cluster.add_node(num_cpus=0, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20)
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=80 * 2**20)
    return cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster = small_cluster(num_nodes=2)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@contextmanager
def sleeping_job(address: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`gpualloc run` of a job on the cluster, once its rank sleeps."""
    path = plans.write(folder, plans.assignment("text", command=(str(SCRIPTS / "fault.py"), "sleep"), gpu_type="H100"))
    process = plans.start(folder, "run", path, "--engine", "ray", "-o", f"address={address}")
    log = folder / "jobs/1-text/attempt1/rank0.log"
    try:
        deadline_s = time.monotonic() + 60
        while not (log.exists() and "sleeping" in log.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield process
    finally:
        process.kill()


@pytest.fixture
def address(cluster: Any) -> str:
    return str(cluster.address)


@pytest.mark.ray
def test_a_job_over_two_nodes_trains_and_one_that_fails_names_its_rank(address: str, tmp_path: Path) -> None:
    devices = tuple(PlannedDevice(node=node, index=0) for node in ("a", "b"))
    spread = {"devices": devices, "num_nodes": 2, "gpu_type": "H100"}
    train = ("python", str(SCRIPTS / "train.py"), "10")
    fault = ("python", str(SCRIPTS / "fault.py"), "raise", "1")
    path = plans.write(
        tmp_path,
        plans.assignment("vision", command=train, cores=(0, 1), strategy="ddp", **spread),
        plans.assignment("text", command=fault, cores=(0, 1), max_restarts=0, start_s=1.0, **spread),
    )
    done = plans.run(tmp_path, "run", path, "--engine", "ray", "-o", f"address={address}", "--json")
    assert done.returncode == 1, done.stderr
    vision, text = json.loads(done.stdout)
    assert (vision["status"], vision["progress"]["step"], vision["progress"]["world_size"]) == ("complete", 10, 2)
    assert "begins at step 0 with 2 ranks" in (tmp_path / "jobs/1-vision/attempt1/rank1.log").read_text()
    assert text["status"] == "failed"
    assert text["reason"] == "rank 1 exited with code 1: ValueError: no such layer in rank 1"


@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused(address: str, tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("text", command=("train.py",), cores=tuple(range(5)), gpu_type="H100"))
    done = plans.run(tmp_path, "run", path, "--engine", "ray", "-o", f"address={address}")
    assert done.returncode == 2
    assert "gpualloc: error: workload 'text' wants 5 GPU and the Ray cluster has 4; plan again" in done.stderr


@pytest.mark.ray
def test_a_node_that_goes_in_the_middle_of_a_job_ends_it(cluster: Any, address: str, tmp_path: Path) -> None:
    """The last one on this cluster, which has a node less afterwards."""
    with sleeping_job(address, tmp_path) as process:
        for node in sorted(cluster.worker_nodes, key=str):
            cluster.remove_node(node, allow_graceful=False)
        _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "text: failed: a node of the Ray cluster is gone: " in stderr
    assert "Traceback" not in stderr


@pytest.mark.ray
def test_a_cluster_that_goes_as_a_whole_leaves_its_job_lost(tmp_path: Path) -> None:
    """Ray itself would notice after a minute, and end the process that asks it."""
    cluster = small_cluster(num_nodes=1)
    with sleeping_job(cluster.address, tmp_path) as process:
        for node in (*cluster.worker_nodes, cluster.head_node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        _, stderr = process.communicate(timeout=45)
    assert process.returncode == 1
    assert f"text: lost: no Ray cluster answers at '{cluster.address}'" in stderr
    assert "Traceback" not in stderr
    (job,) = json.loads(plans.run(tmp_path, "status", "--json").stdout)
    assert job["status"] == "lost"


def test_what_ray_would_run_is_printed_without_ray(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("text", command=("train.py",), cores=(0, 1), gpu_type="H100"))
    done = plans.run(tmp_path, "run", path, "--engine", "ray", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "placement group: bundles=[{'GPU': 2.0, 'CPU': 2.0}], strategy='STRICT_PACK'" in done.stdout
    assert "--nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0" in done.stdout
    nobody = plans.run(tmp_path, "run", path, "--engine", "ray", "-o", "address=127.0.0.1:1", timeout_s=60)
    assert nobody.returncode == 1
    assert "gpualloc: error: no Ray cluster answers at '127.0.0.1:1'" in nobody.stderr
