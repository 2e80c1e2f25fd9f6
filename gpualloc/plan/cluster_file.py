"""The cluster: nodes, GPUs, links and prices, described in a YAML file or detected on this machine."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpualloc.errors import UsageError
from gpualloc.plan.file_errors import read_user_file
from gpualloc.plan.records import PlannedCluster, PlannedDevice, PlannedNode

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterNode(_Data):
    """A node with GPUs of one type."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^\s,]+$")]
    gpu_type: Annotated[str, Field(min_length=1)]
    num_gpus: Annotated[int, Field(ge=1, le=1024)]
    device: Literal["cuda", "cpu"] = "cuda"  # "cpu": cores in place of GPUs
    device_name: str | None = None  # as NVML writes it; None: any measured device whose name holds all words of gpu_type
    memory_gib: _Positive | None = None  # of one GPU; None: what fits cannot be told
    link: str | None = None  # between its GPUs, as in gpualloc.rehearsal
    islands: list[list[int]] = []  # indices that NVLink joins; []: all
    numa: list[list[int]] = []  # indices at one NUMA node; []: all
    uuids: list[str] = []
    reserved: list[int | str] = []  # indices or UUIDs that are not to be used
    busy: list[int | str] = []  # that others use now

    @model_validator(mode="after")
    def _check(self) -> ClusterNode:
        for field in ("islands", "numa"):
            listed = [index for group in getattr(self, field) for index in group]
            if len(set(listed)) != len(listed) or any(not 0 <= index < self.num_gpus for index in listed):
                raise ValueError(f"{field} must hold indices from 0 to {self.num_gpus - 1}, each once at most")
        if self.uuids and len(self.uuids) != self.num_gpus:
            raise ValueError(f"uuids has {len(self.uuids)} entries and num_gpus is {self.num_gpus}")
        for field in ("reserved", "busy"):
            for entry in getattr(self, field):
                self._index(field, entry)
        return self

    def _index(self, field: str, entry: int | str) -> int:
        if isinstance(entry, int):
            if not 0 <= entry < self.num_gpus:
                raise ValueError(f"{field} names GPU {entry}; choose 0 to {self.num_gpus - 1}, or a UUID")
            return entry
        matches = [index for index, uuid in enumerate(self.uuids) if uuid.startswith(entry)]
        if len(matches) != 1:
            known = ", ".join(self.uuids) or "none: list uuids"
            raise ValueError(f"{field} names {entry!r}, which is {'no' if not matches else 'more than one'} UUID of the node ({known})")
        return matches[0]

    @property
    def unavailable(self) -> dict[int, str]:
        """Index -> "reserved" or "busy"."""
        return {self._index(field, entry): field for field in ("busy", "reserved") for entry in getattr(self, field)}

    @property
    def available(self) -> list[int]:
        return [index for index in range(self.num_gpus) if index not in self.unavailable]

    def planned_device(self, index: int) -> PlannedDevice:
        return PlannedDevice(node=self.name, index=index, uuid=self.uuids[index] if self.uuids else None)


class Price(_Data):
    """Of one GPU for an hour."""

    gpu_type: str
    per_gpu_hour: _Positive
    source: Annotated[str, Field(min_length=1)]  # whose price list, of which day


class ClusterFile(_Data):
    name: str = "cluster"
    nodes: Annotated[list[ClusterNode], Field(min_length=1)]
    network: str | None = None  # between nodes, as in gpualloc.rehearsal; None: no workload spans nodes
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None  # ISO 4217, of all prices
    prices: list[Price] = []

    @model_validator(mode="after")
    def _check(self) -> ClusterFile:
        names = [node.name for node in self.nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two nodes are called {twice[0]!r}")
        if self.prices and self.currency is None:
            raise ValueError("prices need a currency, such as 'USD'")
        for price in self.prices:
            if price.gpu_type not in self.gpu_types:
                raise ValueError(f"prices name {price.gpu_type!r}; the cluster has {', '.join(self.gpu_types)}")
        if len({price.gpu_type for price in self.prices}) != len(self.prices):
            raise ValueError("a GPU type has two prices")
        for gpu_type in self.gpu_types:
            if len({(node.device, node.memory_gib, node.link, node.device_name) for node in self.nodes_of(gpu_type)}) > 1:
                raise ValueError(f"nodes of {gpu_type!r} differ in device, memory_gib, link or device_name; give them types of their own")
        return self

    @property
    def gpu_types(self) -> list[str]:
        return list(dict.fromkeys(node.gpu_type for node in self.nodes))

    def nodes_of(self, gpu_type: str) -> list[ClusterNode]:
        return [node for node in self.nodes if node.gpu_type == gpu_type]

    def price_of(self, gpu_type: str) -> float | None:
        """Of one GPU for an hour, in `currency`; None where the file has none."""
        return next((price.per_gpu_hour for price in self.prices if price.gpu_type == gpu_type), None)

    def node(self, name: str) -> ClusterNode:
        return next(node for node in self.nodes if node.name == name)

    def with_ours(self, devices: Collection[tuple[str, int]]) -> ClusterFile:
        """A copy in which these GPUs (node, index) are not busy: what runs there is ours."""
        nodes = []
        for node in self.nodes:
            busy = [index for index, why in node.unavailable.items() if why == "busy" and (node.name, index) not in devices]
            nodes.append(node.model_copy(update={"busy": busy}))
        return self.model_copy(update={"nodes": nodes})

    def planned(self) -> PlannedCluster:
        return PlannedCluster(
            name=self.name,
            nodes=tuple(
                PlannedNode(
                    name=node.name,
                    gpu_type=node.gpu_type,
                    num_gpus=node.num_gpus,
                    memory_gib=node.memory_gib,
                    unavailable=tuple(sorted(node.unavailable)),
                    device=node.device,
                )
                for node in self.nodes
            ),
        )


def is_same_device(node: ClusterNode, device_name: str, device: str) -> bool:
    """Whether what was measured on a device of that name holds for the node: "A100" and "NVIDIA A100-SXM4-80GB" do."""
    if device != node.device:
        return False
    if node.device_name is not None:
        return node.device_name == device_name
    if device == "cpu" and node.gpu_type == "cpu":
        return True
    return set(_words(node.gpu_type)) <= set(_words(device_name))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def read_cluster(path: Path) -> ClusterFile:
    """The file, checked, with links that exist.

    Raises:
        UsageError: names the file, the place in it and what is allowed.
    """
    from gpualloc.rehearsal.link_model import load_link

    cluster = read_user_file(path, ClusterFile, what="cluster file")
    links = [(f"nodes[{number}].link", node.link, "node") for number, node in enumerate(cluster.nodes)]
    for place, name, level in [*links, ("network", cluster.network, "network")]:
        if name is None:
            continue
        try:
            link = load_link(name)
        except UsageError as error:
            raise UsageError(f"{path}: {place}: {error}") from error
        if link.level != level:
            where = "inside a node" if link.level == "node" else "between nodes"
            raise UsageError(f"{path}: {place}: {name!r} is a link {where}; see gpualloc rehearse --help for both kinds")
    return cluster
