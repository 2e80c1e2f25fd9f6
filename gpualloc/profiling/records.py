"""What a profile is made of. Times are seconds per step, means over the traced steps, unless a name says otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROFILE_SCHEMA_VERSION = 1

PARTS = ("input_wait_s", "host_to_device_s", "kernels_s", "optimizer_s", "exposed_comm_s", "other_memory_s", "launch_gap_s")


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One step of one rank. Every moment counts once, so that `PARTS` add up to the step; docs/profile.md defines each."""

    input_wait_s: float  # waiting for a batch while the device has nothing to do
    host_to_device_s: float  # copies to the device that nothing else covers
    kernels_s: float  # computing: forward, backward and all else but the optimizer
    optimizer_s: float  # computing inside the optimizer's step
    exposed_comm_s: float  # communication while nothing is computed
    other_memory_s: float  # other copies and fills on the device that nothing covers
    launch_gap_s: float  # the rest: the device waits for the host to launch
    hidden_comm_s: float  # communication while something is computed: part of the computing time
    matmul_s: float  # of the computing time: matrix products, convolutions and attention, by the names of kernels or operators
    num_launches: float  # kernels on the device, or operators that did work on a CPU
    num_synchronisations: float  # calls in which the host waits for the device; 0 on a CPU

    @property
    def step_time_s(self) -> float:
        return float(sum(getattr(self, name) for name in PARTS))

    @property
    def computing_s(self) -> float:
        return self.kernels_s + self.optimizer_s

    @property
    def overlap_ratio(self) -> float | None:
        """Share of the communication that is hidden; None without communication."""
        total_s = self.hidden_comm_s + self.exposed_comm_s
        return self.hidden_comm_s / total_s if total_s > 0 else None

    def with_communication(self, *, exposed_s: float, hidden_s: float) -> StepTimes:
        """With communication that the trace does not show, as its own clock timed it: what is exposed of it lay in the launch gaps."""
        exposed_s = min(self.launch_gap_s, exposed_s)
        return dataclasses.replace(
            self,
            exposed_comm_s=self.exposed_comm_s + exposed_s,
            launch_gap_s=self.launch_gap_s - exposed_s,
            hidden_comm_s=self.hidden_comm_s + hidden_s,
        )

    def without_overhead(self, overhead_s: float) -> StepTimes:
        """With what recording added taken off the launch gaps, which is where it is: the host records, the device does not."""
        return dataclasses.replace(self, launch_gap_s=self.launch_gap_s - min(self.launch_gap_s, max(0.0, overhead_s)))


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one step asks of the device, counted operator by operator."""

    flops: Mapping[str, float]  # number format, such as "bf16" or "tf32" -> floating-point operations of a step
    moved_bytes: float  # every operator's inputs and outputs once, as if nothing stayed in a cache
    memory_share: float | None  # of the roofline time of a step: in operators whose bytes take longer than their operations
    roofline_s: float | None = None  # what a step would take if every operator were as fast as the roofline lets it be

    @property
    def total_flops(self) -> float:
        return float(sum(self.flops.values()))


@dataclass(frozen=True, kw_only=True)
class MachineSpeed:
    """What the device reached in this process, for want of a datasheet or beside it."""

    matmul_flops_per_s: float  # of a large product in the format most operations of the step have
    matmul_format: str
    copy_bytes_per_s: float  # read and written, of a large copy


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """What NVML says of the GPU over the steps without a profiler, as fractions; None where it does not say."""

    gpu: float | None  # of the time with any kernel running, over NVML's last sample period
    sm: float | None  # of the SMs' time with work (GPM)
    tensor: float | None  # of the SMs' time in tensor cores (GPM)
    dram: float | None  # of the DRAM's peak bandwidth (GPM)
    reason: str | None  # why GPM's are missing


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Of the steps without a profiler: allocated on the GPU, or resident on the CPU."""

    high_water_bytes: int
    total_bytes: int
    headroom_bytes: int  # what more could be allocated: free memory and what torch's allocator holds unused


@dataclass(frozen=True, kw_only=True)
class LoaderSetting:
    """The DataLoader that was iterated last."""

    num_workers: int
    pin_memory: bool


@dataclass(frozen=True, kw_only=True)
class RankProfile:
    """What one rank saw of itself."""

    rank: int
    world_size: int
    device: str  # "cuda" or "cpu"
    device_name: str
    num_steps: int  # traced; as many ran before without the profiler
    step_time_s: float  # mean without the profiler
    profiled_step_time_s: float  # mean with it
    times: StepTimes  # of the traced steps, with the profiler's overhead taken off
    gpu_busy: float | None  # share of the step with any kernel or copy on the GPU, from the trace; None on a CPU
    costs: Costs | None
    speed: MachineSpeed | None
    mfu: float | None  # None for hardware that gpualloc.profiling.peaks does not know
    peak_source: str | None  # of the peaks that `mfu` refers to
    utilisation: Utilisation | None
    memory: MemoryUse
    loader: LoaderSetting | None
    num_cpus: int  # cores, this rank's share of them
    trace_path: str
    notes: tuple[str, ...] = ()

    @property
    def overhead_ratio(self) -> float:
        """What the profiler adds to a step, as a fraction of it; noise can make it negative."""
        return self.profiled_step_time_s / self.step_time_s - 1

    @property
    def flops_per_s(self) -> float | None:
        return None if self.costs is None else self.costs.total_flops / self.step_time_s


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What bounds the training, why, and what to do about it."""

    kind: str  # of gpualloc.profiling.verdict.KINDS
    share: float  # of the step that the kind accounts for
    sentence: str  # kind, evidence and next step in one
    evidence: tuple[str, ...]  # the figures it rests on
    next_step: str
    shares: Mapping[str, float]  # kind -> share of the step, of the kinds that compete


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All ranks of one training."""

    subject: str  # what was profiled: a case's label or the script's command
    ranks: tuple[RankProfile, ...]
    verdict: Verdict


def rank_to_json(profile: RankProfile) -> dict[str, Any]:
    """As plain JSON types; `rank_from_json` reads it."""
    return dataclasses.asdict(profile)


def rank_from_json(data: Mapping[str, Any]) -> RankProfile:
    nested = {"times": StepTimes, "costs": Costs, "speed": MachineSpeed, "utilisation": Utilisation, "memory": MemoryUse}
    fields = {**data, "notes": tuple(data["notes"])}
    for name, record in {**nested, "loader": LoaderSetting}.items():
        if fields[name] is not None:
            fields[name] = record(**fields[name])
    return RankProfile(**fields)


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """With "schema_version", and for each rank the figures that follow from others."""
    ranks = []
    for rank in profile.ranks:
        derived = {
            "overhead_ratio": rank.overhead_ratio,
            "flops_per_s": rank.flops_per_s,
            "flops_per_step": None if rank.costs is None else rank.costs.total_flops,
            "overlap_ratio": rank.times.overlap_ratio,
        }
        ranks.append({**rank_to_json(rank), **derived})
    return {
        "schema_version": PROFILE_SCHEMA_VERSION,
        "subject": profile.subject,
        "verdict": dataclasses.asdict(profile.verdict),
        "ranks": ranks,
    }
