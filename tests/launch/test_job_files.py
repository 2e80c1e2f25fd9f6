"""Files for other tools, against the schemas that those publish."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpualloc.errors import UsageError
from gpualloc.launch.job import Job, jobs_of
from gpualloc.launch.job_files import FORMATS
from gpualloc.plan.records import PlannedDevice
from tests.launch import plans

OPTIONS = {
    "kubernetes": ["image=registry/train:1", "queue=team", "volume=claim", "gpu-product=NVIDIA-H100-80GB-HBM3"],
    "skypilot": ["infra=aws/us-east-1", "spot=true"],
    "dstack": ["max-price=3.5"],
}


def make_jobs() -> list[Job]:
    """One over two nodes whose name and arguments need care, and one on a single GPU."""
    devices = tuple(PlannedDevice(node=node, index=index) for node in ("a", "b") for index in range(4))
    wide: dict[str, Any] = {"devices": devices, "num_nodes": 2, "num_gpus": 8, "gpu_type": "H100", "strategy": "ddp", "max_restarts": 2}
    return jobs_of(
        plans.plan(
            plans.assignment("Vision_Run 1", command=("python", "train.py", "--name", "it's"), checkpoint="/data/vision.pt", **wide),
            plans.assignment("text", command=("train.py",), gpu_type="A100"),
        )
    )


def documents(name: str) -> list[list[dict[str, Any]]]:
    return [list(yaml.safe_load_all(FORMATS[name](OPTIONS[name]).render(job))) for job in make_jobs()]


def test_kubernetes_takes_the_files() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for service, job in documents("kubernetes"):
        validate.validate(service, validate.latest_version(), strict=True)
        validate.validate(job, validate.latest_version(), strict=True)
        assert job["spec"]["suspend"]  # until Kueue admits all pods
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_dstack_takes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    models = pytest.importorskip("dstack._internal.core.models.configurations")
    wide, single = (models.parse_apply_configuration(document) for (document,) in documents("dstack"))
    assert (wide.nodes, wide.max_price, single.nodes) == (2, 3.5, 1)
    assert wide.resources.gpu.name == ["H100"]


def test_skypilot_takes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    for (document,) in documents("skypilot"):
        jsonschema.validate(document, schemas.get_task_schema())
        jsonschema.validate(document["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_says_what_was_planned_and_nothing_of_this_machine(name: str) -> None:
    wide, single = (FORMATS[name](OPTIONS[name]).render(job) for job in make_jobs())
    for text in ("--nnodes 2 --nproc-per-node 4 --node-rank ", "python train.py --name ", "GPUALLOC_STRATEGY", "/data/vision.pt"):
        assert text in wide
    assert "vision-run-1" in wide
    assert "--nnodes 1 --nproc-per-node 1 --standalone --no-python python train.py" in single
    for text in (str(plans.ROOT), os.path.expanduser("~/"), os.getcwd()):
        assert text not in wide


def test_files_are_written_and_remembered(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.assignment("vision", command=("train.py",), gpu_type="H100"))
    done = plans.run(tmp_path, "run", path, "--engine", "dstack", "--output", tmp_path / "files", "--json")
    assert done.returncode == 0, done.stderr
    (written,) = json.loads(done.stdout)
    assert yaml.safe_load(Path(written["file"]).read_text())["type"] == "task"
    assert written["submit"] == f"dstack apply --yes -f {written['file']}"
    (job,) = json.loads(plans.run(tmp_path, "status", "--json").stdout)
    assert (job["status"], job["reason"]) == ("written", f"submit it with: {written['submit']}")


def test_what_a_tool_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="name one that holds gpualloc and the script with -o image="):
        FORMATS["kubernetes"]([]).render(make_jobs()[0])
    with pytest.raises(UsageError, match=r"--option 'colour' is unknown to dstack; it has: gpu \("):
        FORMATS["dstack"](["colour=red"])
    with pytest.raises(UsageError, match="--option 'image' is not KEY=VALUE"):
        FORMATS["dstack"](["image"])
