"""This machine as a cluster of one node: GPUs, NVLink islands, NUMA and who uses what, by NVML; its cores where there is no GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpualloc.plan.cluster_file import ClusterFile, ClusterNode


def detect_cluster(nvml: Any = None) -> ClusterFile:
    """The cluster that this machine is; types of GPUs that differ become nodes of their own, "host", "host-2", ...

    Args:
        nvml: the pynvml module, or what stands in for it.

    Raises:
        GpuallocError: there is a driver that does not answer.
    """
    from gpualloc.watching.gpus import GpuReader, GpuReading, NoGpusError

    try:
        reader = GpuReader(nvml=nvml)
    except NoGpusError:
        return ClusterFile(name=socket.gethostname(), nodes=[_cpu_node()])
    try:
        readings = [reading for reading in reader.read() if reading.kind == "gpu"]
        places = reader.places()
    finally:
        reader.close()
    groups: dict[str, list[GpuReading]] = {}
    for reading in readings:
        groups.setdefault(reading.name, []).append(reading)
    nodes = []
    for number, (name, members) in enumerate(groups.items()):
        place_of = {reading.uuid: place for place, reading in enumerate(members)}
        busy = [place_of[reading.uuid] for reading in members if reading.processes]
        memory = members[0].memory_total_bytes
        nodes.append(
            ClusterNode(
                name=socket.gethostname() + (f"-{number + 1}" if number else ""),
                gpu_type=name,
                device_name=name,
                num_gpus=len(members),
                memory_gib=None if memory is None else memory / 2**30,
                islands=_groups([places[reading.uuid].nvlinked for reading in members], place_of),
                numa=_by_key([_numa_node(places[reading.uuid].pci_bus_id) for reading in members]),
                uuids=[reading.uuid for reading in members],
                busy=list(busy),
            )
        )
    return ClusterFile(name=socket.gethostname(), nodes=nodes)


def _cpu_node() -> ClusterNode:
    import psutil

    num_cores = len(os.sched_getaffinity(0))
    share_gib = psutil.virtual_memory().total / num_cores / 2**30
    return ClusterNode(name=socket.gethostname(), gpu_type="cpu", device="cpu", num_gpus=num_cores, memory_gib=share_gib)


def _groups(neighbours: Sequence[frozenset[str]], place_of: dict[str, int]) -> list[list[int]]:
    """Connected groups of places; [] where NVLink joins nothing, or everything."""
    unseen, groups = set(range(len(neighbours))), []
    while unseen:
        group, border = set(), {min(unseen)}
        while border:
            place = border.pop()
            group.add(place)
            border |= {place_of[uuid] for uuid in neighbours[place] if uuid in place_of} - group
        groups.append(sorted(group))
        unseen -= group
    is_telling = len(groups) > 1 and any(len(group) > 1 for group in groups)
    return groups if is_telling else []


def _by_key(keys: Sequence[int | None]) -> list[list[int]]:
    known = sorted({key for key in keys if key is not None})
    return [[place for place, key in enumerate(keys) if key == each] for each in known] if len(known) > 1 else []


def _numa_node(pci_bus_id: str | None) -> int | None:
    """From sysfs; None where the kernel does not know (-1)."""
    if pci_bus_id is None:
        return None
    domain, _, rest = pci_bus_id.lower().partition(":")
    try:
        number = int(Path(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return None if number < 0 else number
