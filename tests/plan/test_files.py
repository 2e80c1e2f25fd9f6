"""Workloads files, cluster files and plan files: what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpualloc.errors import UsageError
from gpualloc.plan.cluster_file import ClusterNode, is_same_device, read_cluster
from gpualloc.plan.records import plan_from_json, plan_to_json, read_plan, write_plan
from gpualloc.plan.workloads import BatchPolicy, read_workloads, without_done
from tests.plan.inputs import cluster, plan_of, workload, workloads_file

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
NODE: dict[str, Any] = {"name": "big", "gpu_type": "A100", "num_gpus": 4, "memory_gib": 80}


def written(tmp_path: Path, data: object, name: str = "file.yaml") -> Path:
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "video"}, "workloads[0].kind: input should be 'image' or 'llm', not 'video'"),
        ({"precisions": ["fp99"]}, "workloads[0].precisions[0]: input should be 'fp64', 'fp32'"),
        ({"strategies": ["magic"]}, "workloads[0].strategies[0]: input should be 'single'"),
        ({"min_gpus": 0}, "workloads[0].min_gpus: input should be greater than or equal to 1, not 0"),
        ({"min_gpus": 9, "max_gpus": 8}, "min_gpus 9 is above max_gpus 8"),
        ({"image_size_px": None}, "kind 'image' needs image_size_px"),
        ({"sequence_length": 128}, "kind 'image' has no sequence_length"),
        ({"epochs": None}, "give one of epochs and steps"),
        ({"steps": 5}, "give one of epochs and steps"),
        ({"dataset_size": None}, "epochs need dataset_size"),
        ({"batch": {}}, "give global_batch_size, or min_global_batch_size and max_global_batch_size"),
        ({"batch": {"min_global_batch_size": 8, "max_global_batch_size": 16}}, "a range needs learning_rate_rule: 'linear', 'sqrt' or"),
        ({"batch": {"global_batch_size": 8, "learning_rate_rule": "linear"}}, "global_batch_size is fixed"),
        ({"budget": {"value": -1, "currency": "USD"}}, "workloads[0].budget.value: input should be greater than 0, not -1"),
        ({"budget": {"value": 1}}, "workloads[0].budget.currency: field required"),
        ({"command": "python train.py"}, "write the command as a list of arguments"),
        ({"name": "a b"}, "workloads[0].name"),
        ({"deadline": 5}, "workloads[0].deadline: extra inputs are not permitted"),
        ({"rates": [{"gpu_type": "A100", "num_gpus": 1}]}, "workloads[0].rates[0]: give one of samples_per_s and step_time_s"),
        ({"rates": [{"gpu_type": "A", "num_gpus": 1, "samples_per_s": 5, "low": 6}]}, "does not hold 5 (low end)"),
        ({"rates": [{"gpu_type": "A", "num_gpus": 3, "num_nodes": 2, "samples_per_s": 5}]}, "cannot be divided equally"),
        ({"model": "mobilenet_v9"}, "workloads[0].model: model 'mobilenet_v9' is not a model of workload 'image'; choose one of"),
        ({"epochs": float("inf")}, "workloads[0].epochs"),
    ],
)
def test_a_workload_that_cannot_be_meant_names_file_place_and_what_is_allowed(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"workloads": [workload(**fields)]})
    with pytest.raises(UsageError) as caught:
        read_workloads(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_names_are_given_once_and_sharing_names_workloads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name 'photos' is given to several workloads"):
        read_workloads(written(tmp_path, {"workloads": [workload(), workload()]}))
    entry = {"workloads": ["photos", "ghost"], "gpu_type": "A100", "slowdown": {"photos": 1.2, "ghost": 1.1}, "source": "here"}
    with pytest.raises(UsageError, match="sharing names 'ghost', which is no workload; choose of photos"):
        read_workloads(written(tmp_path, {"workloads": [workload()], "sharing": [entry]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workloads: [", "is not YAML"),
        ("workloads: []", "workloads is empty"),
        ("- 1", "the file: "),
        ("", "the file: "),
        ("x: 1", "field required"),
    ],
)
def test_a_file_that_is_no_workloads_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_workloads(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_workloads(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_cluster(tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="is not JSON"):
        read_workloads(written(tmp_path, "workloads: []", "file.json"))


def test_json_is_read_as_yaml_is(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"workloads": [workload()]}), "file.json")
    assert read_workloads(path).workloads[0].name == "photos"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nodes": []}, "nodes: list should have at least 1 item"),
        ({"nodes": [NODE, NODE]}, "two nodes are called 'big'"),
        ({"nodes": [{**NODE, "link": "nvlink9"}]}, "nodes[0].link: there is no link 'nvlink9'"),
        ({"nodes": [{**NODE, "link": "ib_ndr"}]}, "nodes[0].link: 'ib_ndr' is a link between nodes"),
        ({"nodes": [NODE], "network": "nvlink4"}, "network: 'nvlink4' is a link inside a node"),
        ({"nodes": [{**NODE, "reserved": [4]}]}, "reserved names GPU 4; choose 0 to 3"),
        ({"nodes": [{**NODE, "busy": ["GPU-a"]}]}, "busy names 'GPU-a', which is no UUID of the node"),
        ({"nodes": [{**NODE, "islands": [[0, 1], [1, 2]]}]}, "islands must hold indices from 0 to 3, each once"),
        ({"nodes": [{**NODE, "uuids": ["GPU-a"]}]}, "uuids has 1 entries and num_gpus is 4"),
        ({"nodes": [{**NODE, "memory_gib": 0}]}, "nodes[0].memory_gib: input should be greater than 0"),
        ({"nodes": [NODE, {**NODE, "name": "b", "memory_gib": 40}]}, "nodes of 'A100' differ in device, memory_gib"),
        ({"nodes": [NODE], "prices": [{"gpu_type": "A100", "per_gpu_hour": 1, "source": "x"}]}, "prices need a currency"),
        (
            {"nodes": [NODE], "currency": "USD", "prices": [{"gpu_type": "A100", "per_gpu_hour": 0, "source": "x"}]},
            "prices[0].per_gpu_hour: input should be greater than 0, not 0",
        ),
        (
            {"nodes": [NODE], "currency": "USD", "prices": [{"gpu_type": "T4", "per_gpu_hour": 1, "source": "x"}]},
            "prices name 'T4'; the cluster has A100",
        ),
        ({"nodes": [NODE], "currency": "dollars"}, "currency"),
    ],
)
def test_a_cluster_that_cannot_be_meant(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, fields)
    with pytest.raises(UsageError) as caught:
        read_cluster(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_reserved_and_busy_gpus_go_by_index_or_uuid() -> None:
    node = ClusterNode.model_validate({**NODE, "uuids": ["GPU-a", "GPU-b", "GPU-c", "GPU-d"], "reserved": ["GPU-b", 3], "busy": [0]})
    assert node.unavailable == {0: "busy", 1: "reserved", 3: "reserved"}
    assert node.available == [2]


@pytest.mark.parametrize(
    ("gpu_type", "device_name", "is_same"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", True),
        ("A100-40GB", "NVIDIA A100-SXM4-80GB", False),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("H100", "NVIDIA H200", False),
    ],
)
def test_a_type_is_the_devices_whose_name_has_its_words(gpu_type: str, device_name: str, is_same: bool) -> None:
    node = ClusterNode.model_validate({**NODE, "gpu_type": gpu_type})
    assert is_same_device(node, device_name, "cuda") is is_same
    assert not is_same_device(node, device_name, "cpu")


def test_the_learning_rate_follows_the_batch_by_its_rule() -> None:
    for rule, factor in (("linear", 4.0), ("sqrt", 2.0), ("constant", 1.0)):
        policy = BatchPolicy.model_validate(
            {"min_global_batch_size": 32, "max_global_batch_size": 512, "reference_global_batch_size": 64, "learning_rate_rule": rule}
        )
        assert policy.learning_rate_factor(256) == factor


def test_the_examples_are_read() -> None:
    assert [each.name for each in read_workloads(EXAMPLES / "workloads.yaml").workloads] == ["photos", "chat", "notes"]
    assert read_cluster(EXAMPLES / "cluster.yaml").price_of("T4") == 0.5


def test_a_plan_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(workloads_file(workload(command=["python", "train.py"])), cluster({})).plan
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["schema_version"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "is a plan of schema 3, this gpualloc reads up to 2"),
        ({"schema_version": None}, "is not a plan: schema_version is None"),
        ({"objective": "best"}, "objective: input should be 'mean_jct', 'makespan'"),
        ({"extra": 1}, "extra: unexpected keyword argument"),
        ({"assignments": [{"workload": "a"}]}, r"assignments\[0\].devices: field required"),
    ],
)
def test_a_file_that_is_no_plan(changes: dict[str, Any], message: str) -> None:
    data = plan_to_json(plan_of(workloads_file(workload()), cluster({})).plan)
    with pytest.raises(UsageError, match=message):
        plan_from_json({**data, **changes}, file="plan.json")


def test_what_is_done_is_left_out_and_so_is_its_sharing() -> None:
    entry = {"workloads": ["a", "b"], "gpu_type": "A100", "slowdown": {"a": 1.2, "b": 1.1}, "source": "here"}
    file = workloads_file(workload("a", samples_done=360_000), workload("b", samples_done=359_999), sharing=[entry])
    left = without_done(file)
    assert ([each.name for each in left.workloads], left.sharing) == (["b"], [])


def test_a_workload_with_nothing_left_can_be_planned() -> None:
    assert plan_of(workloads_file(workload("a", samples_done=400_000), workload("b")), cluster({})).fairness == {"b": pytest.approx(1.0)}
