"""Clusters to simulate: presets, and files in YAML or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_json, from_yaml
from gpualloc.plan.file_errors import describe
from gpualloc.plan.protocol import Cluster, Node

# (GPU type, nodes, GPUs of a node). mixed64: the heterogeneous cluster of Sia (SOSP 2023, section 5); the others are round numbers.
_PRESETS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "mixed64": (("t4", 6, 4), ("rtx2080ti", 3, 8), ("a100", 2, 8)),
    "t4x64": (("t4", 16, 4),),
    "a100x64": (("a100", 8, 8),),
    "mixed256": (("t4", 24, 4), ("rtx2080ti", 12, 8), ("a100", 8, 8)),
}
PRESETS = tuple(_PRESETS)


class _Nodes(BaseModel):
    model_config = ConfigDict(extra="forbid")
    gpu_type: str = Field(min_length=1)
    nodes: int = Field(ge=1, le=100_000)
    gpus_per_node: int = Field(ge=1, le=64)
    price_per_gpu_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class ClusterFile(BaseModel):
    """`nodes:` is a list of groups of equal nodes."""

    model_config = ConfigDict(extra="forbid")
    nodes: list[_Nodes] = Field(min_length=1)

    def cluster(self) -> Cluster:
        return _cluster([(group.gpu_type, group.nodes, group.gpus_per_node) for group in self.nodes])

    def prices_per_hour(self) -> dict[str, float]:
        return {group.gpu_type: group.price_per_gpu_hour for group in self.nodes if group.price_per_gpu_hour is not None}


def load_cluster(name: str) -> tuple[Cluster, dict[str, float]]:
    """A preset, or a file; with prices per GPU-hour by type where the file gives them.

    Raises:
        UsageError: neither, or the file is wrong; names the entry and what is allowed.
    """
    if name in _PRESETS:
        return _cluster(_PRESETS[name]), {}
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UsageError(f"--cluster {name} is neither a preset ({', '.join(PRESETS)}) nor a .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        data = from_json(text) if path.suffix == ".json" else from_yaml(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"cluster file {path} cannot be read: {error}; see docs/simulate.md for the form") from error
    try:
        file = ClusterFile.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}; nodes is a list of gpu_type, nodes, gpus_per_node") from None
    return file.cluster(), file.prices_per_hour()


def _cluster(groups: Sequence[tuple[str, int, int]]) -> Cluster:
    nodes = []
    for number, (gpu_type, count, size) in enumerate(groups):
        nodes += [Node(node_id=f"{gpu_type}-{number}-{index}", gpu_type=gpu_type, num_gpus=size) for index in range(count)]
    return Cluster(nodes=tuple(nodes))
