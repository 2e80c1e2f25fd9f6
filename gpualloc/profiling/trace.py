"""Reads the Chrome trace that torch.profiler exports into events of a few kinds.

Times are microseconds, on one clock for host and device.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpualloc.errors import GpuallocError
from gpualloc.plain_data import from_json

STEP_MARK = "gpualloc::step"  # recorded where a step ends, and where the first one begins
INPUT_RANGE = "gpualloc::input"  # recorded around what waits for a batch without being a DataLoader
OWN_WAIT_RANGE = "gpualloc::wait"  # recorded around the recorder's own synchronisation

# torch.utils.data and torch.optim record these themselves: "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__",
# "Optimizer.step#SGD.step" (read in torch 2.11 and 2.13).
_LOADER_RANGE = "enumerate(DataLoader)#"
_OPTIMIZER_RANGE = "Optimizer.step#"
_COMPILED_CALL = "## Call CompiledFxGraph"  # one compiled region; its loops are no operators of their own
_HOST_COMMUNICATION = ("gloo:", "mpi:", "ucc:")  # while a collective is under way, on a thread of whoever carries it
_DEVICE_COMMUNICATION = ("ncclKernel", "ncclDevKernel", "ncclSymk", "gpualloc_hold")  # kernels; the last one stands for a modelled link
_SYNCHRONISATIONS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize")


@dataclass(frozen=True, slots=True)
class Event:
    """Something with a beginning and an end."""

    name: str
    start_us: float
    end_us: float
    thread: str  # of the host, or the device's stream
    correlation: int | None = None  # the same for a launch and what was launched

    @property
    def pair(self) -> tuple[float, float]:
        return self.start_us, self.end_us

    @property
    def duration_us(self) -> float:
        return self.end_us - self.start_us


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one process recorded, sorted by start."""

    ops: tuple[Event, ...]  # operators on the host, nested, and calls of compiled regions
    annotations: tuple[Event, ...]  # named ranges on the host
    launches: tuple[Event, ...]  # calls of the CUDA runtime and driver
    kernels: tuple[Event, ...]  # on the device
    copies: tuple[Event, ...]  # memcpy and memset on the device

    def step_marks(self) -> tuple[Event, ...]:
        return tuple(event for event in self.annotations if event.name == STEP_MARK)

    def input_ranges(self) -> tuple[Event, ...]:
        """Where the training loop waits for a batch: on the thread that steps, whatever other threads load meanwhile."""
        threads = {mark.thread for mark in self.step_marks()}
        is_input = (event for event in self.annotations if event.name == INPUT_RANGE or event.name.startswith(_LOADER_RANGE))
        return tuple(event for event in is_input if event.thread in threads)

    def optimizer_ranges(self) -> tuple[Event, ...]:
        return tuple(event for event in self.annotations if event.name.startswith(_OPTIMIZER_RANGE))

    def host_collectives(self) -> tuple[Event, ...]:
        """Of backends that work on the host."""
        return tuple(event for event in self.annotations if event.name.startswith(_HOST_COMMUNICATION))

    def synchronisations(self) -> tuple[Event, ...]:
        """Calls in which the host waits for the device, but for the recorder's own."""
        own = [event for event in self.annotations if event.name == OWN_WAIT_RANGE]
        waits = (event for event in self.launches if event.name.startswith(_SYNCHRONISATIONS))
        return tuple(event for event in waits if not any(each.start_us <= event.start_us < each.end_us for each in own))


def is_communication(kernel: Event) -> bool:
    """As HTA has it: a kernel of NCCL, by its name."""
    return kernel.name.startswith(_DEVICE_COMMUNICATION)


def is_host_to_device(copy: Event) -> bool:
    """Of the copies: from the host's memory, such as "Memcpy HtoD (Pinned -> Device)"."""
    return copy.name.startswith("Memcpy HtoD")


def read_trace(path: Path) -> Trace:
    """The trace in a file, JSON or gzipped JSON.

    Raises:
        GpuallocError: it cannot be read or is no trace of torch.profiler.
    """
    try:
        raw = path.read_bytes()
        data = from_json(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        return parse_trace(data["traceEvents"])
    except (OSError, EOFError, zlib.error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise GpuallocError(
            f"the trace {path} cannot be read: {type(error).__name__}: {error}; give a file that torch.profiler's export_chrome_trace wrote"
        ) from error


def parse_trace(raw_events: Iterable[Mapping[str, Any]]) -> Trace:
    """Args: raw_events: the "traceEvents" of a Chrome trace."""
    found: dict[str, list[Event]] = {"ops": [], "annotations": [], "launches": [], "kernels": [], "copies": []}
    for raw in raw_events:
        if raw.get("ph") != "X":
            continue
        kind = _KINDS.get(raw.get("cat", ""))
        name = raw["name"]
        if kind == "annotations" and name.startswith(_COMPILED_CALL):
            kind = "ops"
        if kind is None:
            continue
        arguments = raw.get("args", {})
        start_us = float(raw["ts"])
        found[kind].append(
            Event(
                name=name,
                start_us=start_us,
                end_us=start_us + float(raw.get("dur", 0.0)),
                thread=f"{raw.get('pid')}/{raw.get('tid')}",
                correlation=arguments.get("correlation"),
            )
        )
    return Trace(**{kind: tuple(sorted(events, key=lambda event: (event.start_us, -event.end_us))) for kind, events in found.items()})


_KINDS = {
    "cpu_op": "ops",
    "user_annotation": "annotations",
    "cuda_runtime": "launches",
    "cuda_driver": "launches",
    "kernel": "kernels",
    "gpu_memcpy": "copies",
    "gpu_memset": "copies",
}
