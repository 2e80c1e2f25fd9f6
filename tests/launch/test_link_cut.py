"""A job over two hosts of the network lab whose link is cut."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks import network_lab
from gpualloc.launch.engine import agent_log, job_environment
from gpualloc.launch.job import jobs_of
from gpualloc.launch.local import describe_failure
from gpualloc.launch.torchrun import Meeting, guarded, node_command
from gpualloc.plan.records import PlannedDevice
from tests.launch import plans

TIMEOUT_S = 10  # a busy machine needs some of it for the first collectives


@pytest.mark.netlab
def test_ranks_whose_link_is_cut_end_within_the_timeout(tmp_path: Path) -> None:
    devices = tuple(PlannedDevice(node=node, index=0) for node in ("a", "b"))
    command = ("python", str(plans.ROOT / "tests/launch/scripts/train.py"), "100000", "0.01")
    (job,) = jobs_of(plans.plan(plans.assignment("cut", command=command, devices=devices, num_gpus=2, num_nodes=2, strategy="ddp")))
    name = f"cut-{os.getpid()}"
    processes = []
    with network_lab.network_lab(2, network_lab.UNLIMITED, name=name) as lab:
        try:
            for node in range(2):
                folder = tmp_path / f"node{node}"
                log = agent_log(folder, 1)
                log.parent.mkdir(parents=True)
                meeting = Meeting(node_rank=str(node), head="10.77.0.1", port="29400")
                environment = {**lab.environment(os.environ), **job_environment(job, folder), "TRAIN_TIMEOUT_S": str(TIMEOUT_S)}
                environment |= {"GPUALLOC_LOG_FOLDER": str(log.parent), "PYTHONPATH": str(plans.ROOT), "OMP_NUM_THREADS": "1"}
                words = lab.command(node, guarded(node_command(job, attempt=1, meeting=meeting)))
                with log.open("wb") as output:
                    processes.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))
            rank_log = tmp_path / "node1/attempt1/rank1.log"
            deadline_s = time.monotonic() + 90
            while not (rank_log.exists() and "step 5\n" in rank_log.read_text()):
                assert time.monotonic() < deadline_s
                assert [process.poll() for process in processes] == [None, None], [log.read_text() for log in tmp_path.rglob("*.log")]
                time.sleep(0.05)
            cut_s = time.monotonic()
            subprocess.run(["ip", "-netns", f"{network_lab.PREFIX}.{name}.0", "link", "set", network_lab.INTERFACE, "down"], check=True)
            codes = [process.wait(timeout=60) for process in processes]
            took_s = time.monotonic() - cut_s
        finally:
            for process in processes:
                process.kill()
                process.wait()
    assert 0 not in codes
    # Between the collective's timeout and torchrun's own steps; a busy machine needs some of it to end the processes.
    assert took_s < TIMEOUT_S + 30
    ends = [describe_failure(agent_log(tmp_path / f"node{node}", 1), codes[node]) for node in range(2)]
    assert [ended.rank for ended in ends] == [0, 1]
    assert "RuntimeError" in ends[0].message
