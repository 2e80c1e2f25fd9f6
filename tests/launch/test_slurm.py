"""Jobs on a real Slurm whose GPUs do not exist, and what happens without one."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gpualloc.plan.records import PlannedDevice
from gpualloc.store import ResultsStore
from tests.launch import plans
from tests.launch.slurm_cluster import slurm_cluster

SCRIPTS = plans.ROOT / "tests/launch/scripts"
SLURM = ("--engine", "slurm", "-o", "poll-every=0.2", "-o", "mem=200")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm_cluster(Path(folder)) as environment:
        yield environment


@pytest.fixture
def slurm(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])


def wait_for(is_there: Callable[[], bool], process: "subprocess.Popen[str]", limit_s: float = 60) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def says(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text()


@pytest.mark.slurm
def test_a_job_near_its_time_limit_saves_a_checkpoint_and_goes_on_when_slurm_starts_it_again(slurm: None, tmp_path: Path) -> None:
    command = ("python", str(SCRIPTS / "train.py"), "60", "0.05", str(tmp_path / "weights.pt"))
    planned = plans.assignment(
        "vision", command=command, cores=(0, 1), gpu_type="H100", checkpoint=str(tmp_path / "c.pt"), hook="gpualloc_fp16",
        model="tiny", kind="image", image_size_px=8,
    )  # fmt: skip
    process = plans.start(tmp_path, "run", plans.write(tmp_path, planned), *SLURM, "--json")
    log = tmp_path / "jobs/1-vision/attempt1/rank0.log"
    try:
        wait_for(lambda: says(log, "step 5\n"), process)
        subprocess.run(["scancel", "--signal=USR1", "--batch", "1"], check=True)  # as Slurm does before the limit
        stdout, stderr = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    before, after = log.read_text().split("gpualloc: stopped after step ")
    stopped_at = int(after.split()[0])
    assert before.startswith("begins at step 0 with 2 ranks")
    assert f"begins at step {stopped_at} with 2 ranks\nstep {stopped_at + 1}\n" in after
    assert after.endswith("step 60\n")
    assert (tmp_path / "weights.pt").exists()
    (job,) = json.loads(stdout)
    assert (job["status"], job["progress"]["step"], job["progress"]["hook"]) == ("complete", 60, "gpualloc_fp16")
    script = (tmp_path / "jobs/1-vision/attempt1/job.sh").read_text()
    for line in ("--gpus-per-node=2", "--requeue", "--signal=B:USR1@120", "--mem=200"):
        assert f"#SBATCH {line}\n" in script
    with ResultsStore(tmp_path / "results.sqlite", create=False) as store:  # for the next plan
        (measurement,) = store.measurements(1)[0]
    assert (measurement.case.model, measurement.case.world_size, measurement.case.hook) == ("tiny", 2, "gpualloc_fp16")
    assert measurement.step_time_s is not None
    assert measurement.step_time_s > 0.05


@pytest.mark.slurm
def test_what_slurm_runs_is_watched_without_its_launcher_and_stopped(slurm: None, tmp_path: Path) -> None:
    planned = plans.assignment("text", command=("python", str(SCRIPTS / "fault.py"), "sleep"), gpu_type="H100")
    submitted = plans.run(tmp_path, "run", plans.write(tmp_path, planned), *SLURM, "--detach")
    assert submitted.returncode == 0, submitted.stderr
    log = tmp_path / "jobs/1-text/attempt1/rank0.log"
    deadline_s = time.monotonic() + 60
    while not says(log, "sleeping"):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    (job,) = json.loads(plans.run(tmp_path, "status", "--json").stdout)
    assert (job["status"], job["reference"].split()[0]) == ("running", "slurm")
    assert plans.run(tmp_path, "logs", "text").stdout.endswith("sleeping\n")
    stopped = plans.run(tmp_path, "stop", "text")
    assert (stopped.returncode, stopped.stdout) == (0, "text: stopped\n")
    deadline_s = time.monotonic() + 20
    while "RUNNING" in subprocess.run(["squeue", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.mark.slurm
def test_a_rank_that_raises_is_named_and_too_few_gpus_are_refused(slurm: None, tmp_path: Path) -> None:
    fault = (str(SCRIPTS / "fault.py"), "raise-always", "1")
    planned = plans.assignment("text", command=fault, cores=(0, 1), gpu_type="H100")
    done = plans.run(tmp_path, "run", plans.write(tmp_path, planned), *SLURM)
    assert done.returncode == 1
    assert "text: failed: rank 1 exited with code 1: ValueError: no such layer in rank 1\n" in done.stderr
    granted = plans.run(tmp_path, "run", plans.write(tmp_path, planned), *SLURM, "-o", "gpus-per-node=1")
    assert granted.returncode == 1
    assert "failed: exited with code 3: gpualloc: planned 2 GPUs a node, Slurm granted 1; plan again with what there is" in granted.stderr


@pytest.mark.slurm
def test_a_slurm_that_does_not_answer_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\nMessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    planned = plans.assignment("text", command=("train.py",))
    done = plans.run(tmp_path, "run", plans.write(tmp_path, planned), *SLURM)
    assert done.returncode == 1
    assert "gpualloc: error: sbatch --parsable failed: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slurm
def test_a_slurm_whose_controller_is_gone_in_the_middle_of_a_job_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm_cluster(Path(folder)) as own:
        conf = Path(own["SLURM_CONF"])
        impatient = conf.with_name("impatient.conf")  # of the commands; the daemons have read theirs
        impatient.write_text(conf.read_text() + "MessageTimeout=2\n")
        monkeypatch.setenv("SLURM_CONF", str(impatient))
        planned = plans.assignment("text", command=(str(SCRIPTS / "fault.py"), "sleep"), gpu_type="H100")
        process = plans.start(tmp_path, "run", plans.write(tmp_path, planned), *SLURM, "-o", "lost-after=1")
        try:
            wait_for(lambda: says(tmp_path / "jobs/1-text/attempt1/rank0.log", "sleeping"), process)
            left = [each for each in psutil.process_iter() if each.name() == "srun"]
            subprocess.run(["scontrol", "shutdown", "slurmctld"], check=True)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
            for each in left:  # with no controller to tell it that the job is over
                with contextlib.suppress(psutil.Error):
                    each.kill()
        assert process.returncode == 1
        assert "gpualloc: error: scontrol --oneliner failed: " in stderr
        assert "see what Slurm says with: sinfo" in stderr
        assert "Traceback" not in stderr
        (job,) = json.loads(plans.run(tmp_path, "status", "--json").stdout)
        assert (job["status"], job["reason"].startswith("scontrol --oneliner failed")) == ("lost", True)


def test_the_script_is_printed_where_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    devices = tuple(PlannedDevice(node=node, index=index) for node in ("a", "b") for index in range(4))
    planned = plans.assignment(
        "vision", command=("python", "train.py"), devices=devices, num_gpus=8, num_nodes=2, gpu_type="H100", strategy="fsdp"
    )
    path = plans.write(tmp_path, planned)
    done = plans.run(tmp_path, "run", path, "--engine", "slurm", "--dry-run", "-o", "gres=gpu:h100:4", "-o", "time=2:00:00")
    assert done.returncode == 0, done.stderr
    for line in ("#SBATCH --nodes=2", "#SBATCH --gres=gpu:h100:4", "#SBATCH --time=2:00:00", "export GPUALLOC_STRATEGY=fsdp"):
        assert f"{line}\n" in done.stdout
    assert "--gpus-per-node" not in done.stdout
    assert "srun --kill-on-bad-exit=1 bash -c 'exec " in done.stdout
    assert (
        '--nnodes 2 --nproc-per-node 4 --node-rank "$SLURM_NODEID" --master-addr "$GPUALLOC_HEAD" --master-port "$GPUALLOC_PORT"'
        in done.stdout
    )
    refused = plans.run(tmp_path, "run", path, "--engine", "slurm")
    assert refused.returncode == 1
    assert "gpualloc: error: there is no sbatch here" in refused.stderr
