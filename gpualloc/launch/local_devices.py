"""The devices of this machine by name: GPUs and MIG slices by UUID, and cores that stand in for GPUs."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpualloc.errors import UsageError
from gpualloc.launch.job import Job

if TYPE_CHECKING:
    from gpualloc.plan.records import PlannedDevice

_HERE = ("localhost", "127.0.0.1", "here")


def check_node(job: Job, node: str | None) -> None:
    """Args:
        node: what the plan calls this machine; None: its host name, or any name where the plan has one node.

    Raises:
        UsageError: the job is for other machines.
    """
    names = {device.node for device in job.devices}
    own = {socket.gethostname(), socket.gethostname().split(".")[0], *_HERE} if node is None else {node}
    if not names <= own:
        raise UsageError(
            f"workload {job.name!r} is planned for {', '.join(sorted(names))} and this machine is {node or socket.gethostname()}; "
            "say what the plan calls it with --node, leave the workload out with --only, or use --engine slurm or ray"
        )


def device_names(job: Job) -> tuple[str, ...]:
    """The same for every process of this machine, whatever its CUDA_VISIBLE_DEVICES.

    Raises:
        UsageError: a GPU is not there or not visible.
    """
    if job.is_cpu:
        return tuple(f"cpu:{device.index}" for device in job.devices)
    return tuple(find_uuid(device) for device in job.devices)


def cores_of(job: Job) -> str | None:
    """Cores of each local rank, as the guard takes them; None for GPUs, which torchrun binds to their NUMA nodes."""
    if not job.is_cpu:
        return None
    cores = sorted(os.sched_getaffinity(0))
    own = [cores[device.index % len(cores)] for device in job.devices]
    return ";".join(map(str, own)) if job.ranks_per_node == len(own) else ",".join(map(str, own))


def can_bind_to_numa_nodes(job: Job, *, nodes: Path = Path("/sys/devices/system/node")) -> bool:
    """Whether there is something to bind GPUs' ranks to, and a torchrun that does it."""
    spec = importlib.util.find_spec("torch")
    has_option = spec is not None and spec.origin is not None and (Path(spec.origin).parent / "numa").is_dir()
    return not job.is_cpu and has_option and len(list(nodes.glob("node[0-9]*"))) > 1


def threads_per_rank(job: Job, num_gpus: int) -> int:
    """OMP_NUM_THREADS: a rank's share of the cores when all GPUs of the machine are in use."""
    if job.is_cpu:
        return max(1, len(job.devices) // job.ranks_per_node)
    return max(1, len(os.sched_getaffinity(0)) * len(job.devices) // (max(1, num_gpus) * job.ranks_per_node))


def find_uuid(device: PlannedDevice) -> str:
    """Raises:
    UsageError: the GPU is not there, or CUDA_VISIBLE_DEVICES does not name it.
    """
    gpus = read_gpus()
    if not gpus:
        raise UsageError(f"the plan has {device.node} GPU {device.index} and NVML sees no GPU here; see gpualloc doctor")
    if device.uuid is not None:
        found = next((gpu for gpu in gpus if gpu[1] == device.uuid), None)
    else:
        found = next((gpu for gpu in gpus if gpu[0] == device.index and gpu[1].startswith("GPU-")), None)
    if found is None:
        have = ", ".join(f"{index} ({uuid})" for index, uuid in gpus)
        raise UsageError(f"the plan has GPU {device.uuid or device.index} of {device.node}, which is not here; there are: {have}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not is_visible(found, visible.split(",")):
        raise UsageError(
            f"the plan has GPU {found[0]} ({found[1]}) and CUDA_VISIBLE_DEVICES={visible!r} does not name it; unset it or plan the others"
        )
    return found[1]


def planned_names(job: Job) -> list[str]:
    """CUDA_VISIBLE_DEVICES as far as it is known without looking: UUIDs, else indices in the order of the PCI bus, which is NVML's."""
    return [] if job.is_cpu else [device.uuid or str(device.index) for device in job.devices]


def foreign_processes(uuids: Sequence[str]) -> list[str]:
    """What runs on these GPUs already, such as "process 4711 on GPU-..."; [] where NVML does not tell."""
    return [f"process {pid} on {uuid}" for _, uuid, pids in _read() for pid in pids if uuid in uuids]


def is_visible(gpu: tuple[int | None, str], entries: Sequence[str]) -> bool:
    """Whether one of CUDA_VISIBLE_DEVICES' entries, an index or the beginning of a UUID, names the GPU (CUDA Programming Guide, 13.0)."""
    for entry in map(str.strip, entries):
        if entry.isdigit():
            if gpu[0] == int(entry) and gpu[1].startswith("GPU-"):
                return True
        elif entry and gpu[1].startswith(entry):
            return True
    return False


def read_gpus() -> list[tuple[int | None, str]]:
    """(index in NVML's order, UUID) of the machine's GPUs and MIG slices; [] without NVML."""
    return [(index, uuid) for index, uuid, _ in _read()]


def _read() -> list[tuple[int | None, str, tuple[int, ...]]]:
    from gpualloc.watching.gpus import GpuReader, NoGpusError

    try:
        reader = GpuReader()
    except NoGpusError:
        return []
    try:
        return [(gpu.index, gpu.uuid, tuple(process.pid for process in gpu.processes or ())) for gpu in reader.read()]
    finally:
        reader.close()
