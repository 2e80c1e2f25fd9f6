"""Link models as data: latency, bandwidth and efficiency of one level of a cluster's network, shipped or calibrated.

A file of `links/` or one that `gpualloc calibrate` wrote. GB is 10**9 bytes; bus bandwidth (busbw) as nccl-tests defines it, so that it
is the speed of the hardware whatever the number of ranks: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_yaml
from gpualloc.store.paths import default_store_path
from gpualloc.whole_files import write_whole

_SHIPPED = Path(__file__).with_name("links")
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Curve = Annotated[list[tuple[_Positive, _Positive]], Field(min_length=1)]  # in ascending order of the first


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HopLatency(_Data):
    ring: _NotNegative
    tree: _NotNegative


class MeasuredCollectives(_Data):
    """What `gpualloc calibrate` saw: times of collectives that had the link to themselves."""

    num_ranks: Annotated[int, Field(ge=2)]
    ranks_per_node: Annotated[int, Field(ge=1)]
    seconds: dict[str, Curve]  # "all_reduce", "all_reduce/float16", ...: [bytes, seconds]


class HostCost(_Data):
    """CPU time that a collective takes from the rank's own cores, as gloo's and TCP's do."""

    per_call_s: _NotNegative
    per_byte_s: _NotNegative


class LinkModel(_Data):
    """One level of a network. Bandwidths are of one direction; per GPU inside a node, per NIC between nodes."""

    name: str
    title: str
    level: Literal["node", "network"]
    datasheet_gb_s: _Positive | None = None
    busbw_gb_s: _Positive  # of a large ring all-reduce
    capacity_gb_s: _Positive | None = None  # that several all-reduces at a time reach together; None: one fills the link
    nics_per_node: Annotated[int, Field(ge=1)] | Literal["per_gpu"] = "per_gpu"
    base_latency_us: _NotNegative  # of a collective of any size
    hop_latency_us: HopLatency
    efficiency: Curve  # [bytes of an all-reduce, share of busbw that the part beyond latency reaches]; 1 beyond the last
    efficiency_nics: Annotated[int, Field(ge=1)] = 1  # NICs of a node among which those bytes were divided
    algorithm: Literal["auto", "ring", "tree", "two_level"] = "auto"
    collectives_in_flight: Annotated[int, Field(ge=1)] = 1  # of one group: 1 for NCCL, 2 for gloo
    measured: MeasuredCollectives | None = None
    host_cost: dict[str, HostCost] = {}  # by operation, as in `measured`
    sources: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_curves(self) -> LinkModel:
        curves = {"efficiency": self.efficiency}
        if self.measured is not None:
            curves.update({f"measured.seconds.{name}": curve for name, curve in self.measured.seconds.items()})
        for name, curve in curves.items():
            sizes = [size for size, _ in curve]
            if sizes != sorted(set(sizes)):
                raise ValueError(f"{name}: sizes are not in ascending order")
        if any(share > 1 for _, share in self.efficiency):
            raise ValueError("efficiency: a share is above 1")
        return self

    def efficiency_at(self, num_bytes: float, *, nics: float = 1) -> float:
        """Share of `busbw_gb_s` for an all-reduce of `num_bytes` through so many NICs of each node."""
        num_bytes *= self.efficiency_nics / nics
        return interpolate(self.efficiency, num_bytes) if num_bytes < self.efficiency[-1][0] else 1.0


def interpolate(curve: Curve, num_bytes: float) -> float:
    """The value at `num_bytes`, straight over log(bytes) between points and constant outside."""
    if num_bytes <= curve[0][0]:
        return curve[0][1]
    for (low_bytes, low), (high_bytes, high) in itertools.pairwise(curve):
        if num_bytes <= high_bytes:
            return low + (high - low) * math.log(num_bytes / low_bytes) / math.log(high_bytes / low_bytes)
    return curve[-1][1]


def calibrated_folder() -> Path:
    """Where `gpualloc calibrate` keeps links by name."""
    return default_store_path().parent / "links"


def link_names() -> list[str]:
    """Names that `load_link` knows: shipped ones, then calibrated ones."""
    folders = (_SHIPPED, calibrated_folder())
    return list(dict.fromkeys(file.stem for folder in folders for file in sorted(folder.glob("*.yaml"))))


def load_link(name_or_path: str) -> LinkModel:
    """The link of that name, a calibrated one before a shipped one, or of that file.

    Raises:
        UsageError: there is none, or the file is not a link model.
    """
    for file in (calibrated_folder() / f"{name_or_path}.yaml", _SHIPPED / f"{name_or_path}.yaml"):
        if "/" not in name_or_path and file.is_file():
            return _read(file)
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _read(Path(name_or_path))
    raise UsageError(
        f"there is no link {name_or_path!r}; choose one of {', '.join(link_names())}, or measure yours: gpualloc calibrate --help"
    )


@cache
def _read(file: Path) -> LinkModel:
    try:
        return LinkModel.model_validate(from_yaml(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cannot read the link model {file}: {error.strerror}; choose one of {', '.join(link_names())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{file} is not a link model: {where}: {first['msg']}; docs/rehearse.md describes the fields") from error
    except ValueError as error:
        raise UsageError(f"{file} is not YAML: {error}; write it with gpualloc calibrate") from error


def write_link(link: LinkModel, file: Path) -> None:
    """Writes the model as YAML.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(link.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120)
    write_whole(file, text)
