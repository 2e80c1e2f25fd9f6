"""Frozen records that the stages hand to each other, with versioned JSON.

Every number that has a unit carries it in its name. GiB is 2**30 bytes, GB is 10**9.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gpualloc.errors import StoreError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One cell of a benchmark grid: everything needed to run it again.

    Scaling is weak: `per_device_batch_size` stays fixed as ranks with data of their own are added.
    """

    workload: str  # "image" or "llm"
    model: str  # a name from gpualloc.workloads
    image_size_px: int | None  # height and width; None for language models
    sequence_length: int | None  # tokens; None for image models
    per_device_batch_size: int  # samples a step takes per data rank, which gpualloc.strategies.data_ranks counts
    precision: str  # "fp32", "fp16", ... as in gpualloc.bench.precision
    strategy: str  # "single", "ddp", "fsdp", ... as in gpualloc.strategies
    hook: str  # of ddp: "torch_fp16", "torch_bf16", "gpualloc_auto", "gpualloc_fp16", ... as in gpualloc.strategies; else "none"
    device: str  # "cuda" or "cpu"
    world_size: int  # number of ranks, or of the GPUs of one process's data_parallel
    ranks_per_gpu: int  # above 1: several NCCL ranks share a card
    data: str  # "synthetic", "digits", an absolute path, or JOB_DATA
    num_warmup_steps: int
    num_steps: int  # timed steps per repeat
    num_repeats: int
    seed: int
    # Details: fields with a default, which is what a plain training script does.
    tuning: str = "full"  # "full", or "lora" where adapters alone are trained
    optimizer: str | None = None  # as in gpualloc.workloads; None: SGD for images, AdamW for language models
    pin_memory: bool | None = None  # of host batches; None: where there is a GPU
    non_blocking: bool = True  # copies of batches to the device
    num_workers: int | None = None  # processes that read data; None: by data and cores
    channels_last: bool = False  # memory format of images and convolutions
    compile: bool = False  # torch.compile
    grad_accum_steps: int = 1  # backward passes of `per_device_batch_size` samples per optimiser step
    activation_checkpointing: bool = False
    # The cluster that is rehearsed on one device, as in gpualloc.rehearsal; None: the ranks are real.
    gpus_per_node: int | None = None
    link: str | None = None  # inside a node
    network: str | None = None  # between nodes

    @property
    def is_rehearsed(self) -> bool:
        """Whether all ranks but one are modelled."""
        return self.gpus_per_node is not None and self.world_size > 1

    def key(self) -> str:
        """A short digest: equal exactly when two cases ask for the same work. Details at their default leave it as it is."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in DETAILS or value != DETAILS[name]}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def details(self) -> dict[str, Any]:
        """The details that are not at their default, without the cluster of a rehearsal."""
        return {name: getattr(self, name) for name, default in DETAILS.items() if name not in REHEARSAL and getattr(self, name) != default}

    def cluster(self) -> str | None:
        """The rehearsed cluster in words, such as "nodes of 8 over nvlink4, ib_ndr between them"; None: a real one."""
        if self.gpus_per_node is None:
            return None
        inside = f"nodes of {self.gpus_per_node} over {self.link}" if self.link is not None else "nodes of 1"
        return inside if self.network is None else f"{inside}, {self.network} between them"

    def label(self) -> str:
        """A short name for progress lines and messages, such as "mobilenet_v2 200px fp16 ddp/torch_fp16 x2 channels_last"."""
        size = f"{self.image_size_px}px" if self.image_size_px is not None else f"{self.sequence_length}tok"
        strategy = f"{self.strategy}/{self.hook}" if self.strategy == "ddp" else self.strategy
        words = [self.model, size, self.precision, strategy, f"x{self.world_size}", *(["rehearsed"] if self.is_rehearsed else [])]
        return " ".join([*words, *(name if value is True else f"{name}={value}" for name, value in self.details().items())])


JOB_DATA = "gpualloc run"  # of rows seen while a job ran: what its script read
REHEARSAL = ("gpus_per_node", "link", "network")
DETAILS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(BenchCase) if field.default is not dataclasses.MISSING}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a measurement was made. Unknown entries are None, never guessed."""

    device_name: str  # "NVIDIA H200", or the CPU's model name
    num_devices: int  # GPUs visible, or 1 for a CPU machine
    driver_version: str | None
    sm_clock_mhz: int | None  # read while the case ran
    mem_clock_mhz: int | None
    cpu_name: str
    num_cpus: int  # cores this process may use
    os: str
    python_version: str
    torch_version: str
    cuda_version: str | None  # the one torch was built for
    nccl_version: str | None
    gpualloc_version: str
    native: str  # "cuda", "cpu" or "unavailable: <reason>"
    git_revision: str | None  # of the working directory, "-dirty" appended where it has changes

    def key(self) -> str:
        """A digest of what makes two measurements comparable (clocks and revision left out)."""
        fields = dataclasses.asdict(self)
        for volatile in ("sm_clock_mhz", "mem_clock_mhz", "git_revision"):
            del fields[volatile]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one case gave. For a status other than "ok" the figures are None and `reason` says why.

    Times are those of the slowest rank.
    """

    case: BenchCase
    status: str  # "ok", "skipped", "oom", "failed"
    reason: str | None = None
    backend: str | None = None  # "nccl" or "gloo", and how ranks share a GPU; None for a single process with a device of its own
    repeat_step_times_s: tuple[float, ...] = ()  # median over the steps of each repeat
    step_time_s: float | None = None  # median of the repeats' medians
    step_time_low_s: float | None = None  # smallest of the repeats' medians
    step_time_high_s: float | None = None  # largest of the repeats' medians
    step_time_ci_low_s: float | None = None  # 95 % confidence interval of step_time_s; None for a single repeat
    step_time_ci_high_s: float | None = None
    compute_time_s: float | None = None  # the same step under no_sync, in the same processes; None where a strategy has no such step
    exposed_comm_s: float | None = None  # step_time_s - compute_time_s, not below 0
    samples_per_s: float | None = None  # different ones, over all ranks
    tokens_per_s: float | None = None  # of different samples, over all ranks; None for image models
    peak_memory_bytes: int | None = None  # per rank: allocated on the GPU, or resident on the CPU
    loss_start: float | None = None  # mean over the ranks, first timed step
    loss_end: float | None = None  # mean over the ranks, last timed step of the planned repeats
    wire_bytes_per_step: int | None = None  # bytes of the tensors a rank's collectives work on in one step; None where not known
    nonfinite_steps: int | None = None  # with inf or NaN in the averaged gradient, where the hook or a GradScaler counts them
    environment: Environment | None = None
    num_rounds: int = 1  # groups of fresh processes whose repeats are pooled
    wall_time_s: float | None = None  # of all rounds, starting and ending the processes included
    asked_batch_size: int | None = None  # where it did not fit into memory and the case has a smaller one
    disturbances: tuple[str, ...] = ()  # why the figures are not to be trusted; () where undisturbed repeats were left
    notes: tuple[str, ...] = ()  # what a reader should know: repeats left out, a power cap, rounds that differ
    input_samples_per_s: float | None = None  # that readers on all cores deliver without training; None where none read ahead

    @property
    def spread(self) -> float | None:
        """(highest - lowest repeat) / median, as a fraction."""
        if self.step_time_s is None or self.step_time_low_s is None or self.step_time_high_s is None:
            return None
        return (self.step_time_high_s - self.step_time_low_s) / self.step_time_s


def to_json(measurement: Measurement) -> dict[str, Any]:
    """The measurement as plain JSON types, with "schema_version"."""
    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(measurement)}


def from_json(data: dict[str, Any]) -> Measurement:
    """The measurement that `to_json` wrote.

    Raises:
        StoreError: of a newer schema, or with fields missing or unknown.
    """
    fields = dict(data)
    version = fields.pop("schema_version", None)
    if not isinstance(version, int) or version < 1:
        raise StoreError(
            f"a measurement has schema_version {version!r}, not a number from 1 to {SCHEMA_VERSION}; it was not written by gpualloc"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"a measurement has schema_version {version}, this gpualloc reads up to {SCHEMA_VERSION}; upgrade gpualloc to read it"
        )
    try:
        fields["case"] = BenchCase(**fields["case"])
        if fields.get("environment") is not None:
            fields["environment"] = Environment(**fields["environment"])
        fields.update({name: tuple(fields.get(name, ())) for name in ("repeat_step_times_s", "disturbances", "notes")})
        return Measurement(**fields)
    except (KeyError, TypeError) as error:
        raise StoreError(f"a measurement cannot be read: {error}; export it again from the store that wrote it") from error
