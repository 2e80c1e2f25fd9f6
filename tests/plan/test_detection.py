"""This machine as a cluster, by a stand-in for NVML."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpualloc.plan import detection
from gpualloc.plan.detection import detect_cluster
from tests.watching.fake_nvml import FakeNvml, running


class LinkedNvml(FakeNvml):
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0


def linked(pairs: set[tuple[str, str]]) -> Any:
    return lambda a, b, index: 0 if (a, b) in pairs or (b, a) in pairs else 5


def nvml(count: int = 4, **answers: Any) -> LinkedNvml:
    memory = SimpleNamespace(used=0, total=80 * 2**30)
    return LinkedNvml(nvmlDeviceGetCount=count, nvmlDeviceGetMemoryInfo=lambda handle, version=None: memory, **answers)


def test_gpus_islands_and_who_is_busy() -> None:
    pairs = {("gpu0", "gpu2"), ("gpu1", "gpu3")}

    def processes(handle: str) -> list[Any]:
        return running((99, 1)) if handle == "gpu1" else []

    found = detect_cluster(nvml(nvmlDeviceGetP2PStatus=linked(pairs), nvmlDeviceGetComputeRunningProcesses=processes))
    (node,) = found.nodes
    assert (node.gpu_type, node.num_gpus, node.memory_gib) == ("NVIDIA H100 80GB HBM3", 4, 80)
    assert node.islands == [[0, 2], [1, 3]]
    assert node.unavailable == {1: "busy"}
    assert node.uuids[3] == "GPU-3333"


@pytest.mark.parametrize("pairs", [set(), {(f"gpu{a}", f"gpu{b}") for a in range(4) for b in range(a)}], ids=["no NVLink", "all joined"])
def test_islands_are_named_only_where_they_divide_the_gpus(pairs: set[tuple[str, str]]) -> None:
    assert detect_cluster(nvml(nvmlDeviceGetP2PStatus=linked(pairs))).nodes[0].islands == []


def test_numa_nodes_are_read_by_pci_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "_numa_node", lambda bus_id: None if bus_id is None else int(bus_id[-1]))
    found = detect_cluster(nvml(nvmlDeviceGetPciInfo=lambda handle: SimpleNamespace(busId=f"00000000:1B:0{int(handle[-1]) % 2}".encode())))
    assert found.nodes[0].numa == [[0, 2], [1, 3]]


def test_types_that_differ_are_nodes_of_their_own() -> None:
    names = {"gpu0": b"NVIDIA A100", "gpu1": b"NVIDIA L4", "gpu2": b"NVIDIA A100"}
    found = detect_cluster(nvml(3, nvmlDeviceGetName=lambda handle: names[handle]))
    assert [(node.gpu_type, node.num_gpus, node.uuids) for node in found.nodes] == [
        ("NVIDIA A100", 2, ["GPU-0000", "GPU-2222"]),
        ("NVIDIA L4", 1, ["GPU-1111"]),
    ]


def test_without_gpus_the_cores_are_planned() -> None:
    (node,) = detect_cluster(LinkedNvml(nvmlInit="Driver Not Loaded")).nodes
    assert (node.device, node.gpu_type) == ("cpu", "cpu")
    assert node.num_gpus >= 1
    assert node.memory_gib is not None
