"""Checks that run something for a second or two: collectives between real processes, copies to the GPUs, a data loader."""

from __future__ import annotations

import os

from gpualloc.bench import environment
from gpualloc.bench.nvml import opened_gpus
from gpualloc.doctor.finding import Finding, judged
from gpualloc.doctor.gpu_health import asker
from gpualloc.doctor.probe_server import ProbeError, ProbeServer

_MAX_RANKS = 8
_PROBE_TIMEOUT_S = 12.0
# GB/s of one lane, either way, after the line code: PCI-SIG's transfer rates (8, 16, 32, 64 GT/s).
_LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
# Copies of pinned memory reach 80 to 90 % of a link on whole machines; below this share something is wrong with it.
_LEAST_LINK_SHARE = 0.5
_LEAST_LOADER_GAIN = 0.5  # workers that bring less than this of one process's speed are a fault, not noise


def check_gloo(server: ProbeServer) -> Finding:
    """A gloo all-reduce between two processes of this machine."""
    return _check_all_reduce(server, "gloo", 2, "look at GLOO_SOCKET_IFNAME and at firewalls between this machine's own addresses")


def check_nccl(server: ProbeServer) -> Finding | None:
    """An NCCL all-reduce over the visible GPUs; with one GPU it shows that NCCL starts."""
    num_gpus = min(environment.count_gpus(), _MAX_RANKS)
    if num_gpus == 0:
        return None
    return _check_all_reduce(
        server, "nccl", num_gpus, "run again with NCCL_DEBUG=WARN; without peer access try NCCL_P2P_DISABLE=1 to tell where it breaks"
    )


def check_copies(server: ProbeServer) -> Finding | None:
    """Host-to-device bandwidth of every GPU, pinned and pageable, against what its PCIe link can carry."""
    if environment.count_gpus() == 0:
        return None
    try:
        ((*rows,),) = server.run("copy_to_device", timeout_s=_PROBE_TIMEOUT_S)
    except ProbeError as error:
        return Finding(
            name="copies to the GPUs", status="FAIL", seen=str(error), advice="look at the kernel log for Xid messages; restart the driver"
        )
    pinned, pageable = [row[0] for row in rows], [row[1] for row in rows]
    warnings = []
    for number, (speed, limit) in enumerate(zip(pinned, _link_gb_s(), strict=False)):
        if limit is not None and speed < _LEAST_LINK_SHARE * limit:
            warnings.append(f"GPU {number}: {speed:.1f} GB/s pinned, where its link carries {limit:.1f}")
    seen = f"pinned {_range(pinned)}, pageable {_range(pageable)} GB/s"
    advice = "look for a card in a narrow slot (check PCIe), cores on the other NUMA node (numactl), or a busy machine"
    return judged("copies to the GPUs", seen, warnings=warnings, advice=advice)


def check_loader(server: ProbeServer) -> Finding:
    """Images a second through torch's DataLoader, in the process itself and with workers."""
    num_workers = max(1, min(4, len(os.sched_getaffinity(0))))
    try:
        ((alone, with_workers),) = server.run("load_images", timeout_s=_PROBE_TIMEOUT_S, num_workers=num_workers)
    except ProbeError as error:
        advice = "workers exchange tensors through /dev/shm and open files: see the checks of shared memory and ulimits"
        return Finding(name="data loader", status="FAIL", seen=str(error), advice=advice)
    noun = "worker" if num_workers == 1 else "workers"
    seen = f"{alone:,.0f} images/s alone, {with_workers:,.0f} with {num_workers} {noun} (512 px resized to 224)"
    warnings = ["workers are slower than none"] if with_workers < _LEAST_LOADER_GAIN * alone else []
    advice = "the cores are taken or limited: see CPU cores and container limits, and look for other jobs"
    return judged("data loader", seen, warnings=warnings, advice=advice)


def _check_all_reduce(server: ProbeServer, backend: str, world_size: int, advice: str) -> Finding:
    name = f"{backend} all-reduce"
    try:
        answers = server.run("all_reduce", world_size=world_size, timeout_s=_PROBE_TIMEOUT_S, backend=backend)
    except ProbeError as error:
        return Finding(name=name, status="FAIL", seen=str(error), advice=advice)
    if not all(answer["is_exact"] for answer in answers):
        advice = "the sum is wrong: suspect memory or a link (check the GPUs' errors), then NCCL_ALGO, NCCL_PROTO and the driver"
        return Finding(name=name, status="FAIL", seen=f"{world_size} ranks got another sum than 1 + ... + {world_size}", advice=advice)
    if world_size == 1:
        return Finding(name=name, status="OK", seen="1 rank: it starts; no link to measure")
    slowest = min(answer["busbw_gb_s"] for answer in answers)
    return Finding(name=name, status="OK", seen=f"{world_size} ranks, exact, busbw {slowest:.3g} GB/s")


def _link_gb_s() -> list[float | None]:
    """What each GPU's PCIe link carries one way at its best; None where NVML does not tell."""
    limits: list[float | None] = []
    with opened_gpus() as (nvml, gpus):
        for gpu in gpus:
            ask = asker(nvml, gpu)
            generation, width = ask("nvmlDeviceGetMaxPcieLinkGeneration"), ask("nvmlDeviceGetMaxPcieLinkWidth")
            limits.append(_LANE_GB_S[generation] * width if generation in _LANE_GB_S and width else None)
    return limits


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
