"""How the visible GPUs are joined: to each other, to the host, and to which of its NUMA nodes."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

from gpualloc.bench.nvml import opened_gpus
from gpualloc.doctor.finding import Finding, judged
from gpualloc.doctor.gpu_health import asker, summed

# nvml.h (CUDA 13.0), nvmlGpuTopologyLevel_t; in the words of `nvidia-smi topo`.
_LEVELS = {
    0: "one board",
    10: "a PCIe switch (PIX)",
    20: "PCIe switches (PXB)",
    30: "the host bridge (PHB)",
    40: "host bridges (NODE)",
    50: "the CPUs (SYS)",
}
# nvml.h: nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t.
_P2P_READ, _P2P_NVLINK = 0, 2
_P2P_STATUSES = {0: None, 1: "the chipset does not support it", 2: "the GPU does not support it", 3: "the topology does not support it"}
_P2P_STATUSES |= {4: "the driver is set to forbid it", 5: "not supported", 6: "unknown"}
_NODES = Path("/sys/devices/system/node")
_PCI_DEVICES = Path("/sys/bus/pci/devices")


def check_gpu_links() -> Finding | None:
    """Between every two GPUs: NVLink or which way over PCIe, and whether one reads the other's memory."""
    warnings: list[str] = []
    ways: list[str] = []
    with opened_gpus() as (nvml, gpus):
        if len(gpus) < 2:
            return None
        refused: dict[str, list[str]] = {}
        for (a, first), (b, second) in combinations(enumerate(gpus), 2):
            ask = asker(nvml, first)
            has_nvlink = ask("nvmlDeviceGetP2PStatus", second, _P2P_NVLINK) == 0
            level = ask("nvmlDeviceGetTopologyCommonAncestor", second)
            ways.append("NVLink" if has_nvlink else _LEVELS.get(level, "an unknown way") if level is not None else "an unknown way")
            status = ask("nvmlDeviceGetP2PStatus", second, _P2P_READ)
            reason = None if status is None else _P2P_STATUSES.get(status, f"status {status}")
            if reason is not None:
                refused.setdefault(reason, []).append(f"{a}-{b}")
        warnings += [f"no peer access between {_some(pairs)}: {reason}" for reason, pairs in refused.items()]
        if len(set(ways)) > 1 and "NVLink" in ways:
            warnings.append("some pairs have NVLink and some have not: choose GPUs that do with CUDA_VISIBLE_DEVICES (nvidia-smi topo -m)")
    advice = (
        "without peer access data goes through host memory: look for ACS or an IOMMU switched on in the BIOS, a virtual machine without "
        "passed-through switches, or MIG; gpualloc calibrate measures what is left"
    )
    return judged("GPU links", f"{len(ways)} {'pair' if len(ways) == 1 else 'pairs'}: {summed(ways)}", warnings=warnings, advice=advice)


def check_pcie() -> Finding | None:
    """Whether each GPU has all the PCIe lanes it can use. (Its generation drops while it idles, so that is left to the measured check.)"""
    warnings, seen = [], []
    with opened_gpus() as (nvml, gpus):
        if not gpus:
            return None
        for number, gpu in enumerate(gpus):
            ask = asker(nvml, gpu)
            width, most, generation = (
                ask("nvmlDeviceGetCurrPcieLinkWidth"),
                ask("nvmlDeviceGetMaxPcieLinkWidth"),
                ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            )
            seen.append("unknown" if not width or not generation else f"PCIe {generation} x{width}")
            if width and most and width < most:
                warnings.append(f"GPU {number} has {width} of {most} PCIe lanes")
    advice = "reseat the card or use a slot with all its lanes; input and gradients through the host get this much slower"
    return judged("PCIe", summed(seen), warnings=warnings, advice=advice)


def check_numa() -> Finding:
    """NUMA nodes, the GPUs' own, and whether this process may run beside its GPUs."""
    cores_of = _read_nodes()
    warnings: list[str] = []
    places: list[str] = []
    usable = os.sched_getaffinity(0)
    with opened_gpus() as (nvml, gpus):
        for number, gpu in enumerate(gpus):
            info = asker(nvml, gpu)("nvmlDeviceGetPciInfo")
            node = None if info is None else _node_of(info.busId)
            if node is None or node not in cores_of:
                continue
            places.append(f"GPU {number} at node {node}")
            if not usable & cores_of[node]:
                warnings.append(f"GPU {number} is at node {node}, on none of whose cores this process may run")
    seen = f"{len(cores_of)} node{'s' if len(cores_of) != 1 else ''}" + (f": {', '.join(places)}" if places and len(cores_of) > 1 else "")
    advice = "give the job cores beside its GPUs: numactl --cpunodebind=NODE, docker --cpuset-cpus, or Slurm's --gpu-bind=closest"
    return judged("NUMA", seen if cores_of else "one node (the kernel tells none)", warnings=warnings, advice=advice)


def parse_cores(text: str) -> set[int]:
    """The kernel's list of cores: "0-3,8" -> {0, 1, 2, 3, 8}."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def _read_nodes() -> dict[int, set[int]]:
    found = {}
    for folder in _NODES.glob("node[0-9]*"):
        try:
            found[int(folder.name[4:])] = parse_cores((folder / "cpulist").read_text())
        except (OSError, ValueError):
            continue
    return found


def _node_of(bus_id: str | bytes) -> int | None:
    """NVML writes "00000000:3B:00.0", the kernel "0000:3b:00.0" and -1 for no node."""
    text = (bus_id.decode() if isinstance(bus_id, bytes) else bus_id).lower()
    try:
        node = int((_PCI_DEVICES / text[-12:] / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _some(pairs: list[str]) -> str:
    return ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
