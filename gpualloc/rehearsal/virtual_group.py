"""The virtual process group: torch's collectives as rank 0 of ranks that do not exist, over links that are modelled.

    with rehearsed(Rehearsal(world_size=8, gpus_per_node=8, link="nvlink4")):
        dist.init_process_group("nccl")        # no peers, no rendezvous
        ...                                    # DDP, FSDP2, tensor parallel: unchanged

`dist.init_process_group("gpualloc_virtual", ...)` does the same where $GPUALLOC_REHEARSAL holds a rehearsal as JSON.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch.distributed import HashStore, distributed_c10d  # type: ignore[attr-defined]

from gpualloc import _native
from gpualloc.errors import GpuallocError, UsageError
from gpualloc.rehearsal.collective_time import GroupTopology, group_topology
from gpualloc.rehearsal.cost_tables import cost_tables
from gpualloc.rehearsal.link_model import LinkModel, load_link

BACKEND = "gpualloc_virtual"
VARIABLE = "GPUALLOC_REHEARSAL"


class Rehearsal(BaseModel):
    """The cluster that is rehearsed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world_size: Annotated[int, Field(ge=1)]
    gpus_per_node: Annotated[int, Field(ge=1)]
    link: str | None = None  # inside a node: a name or a file; None only where every node has one GPU
    network: str | None = None  # between nodes; None only where there is one node

    @model_validator(mode="after")
    def _check_nodes(self) -> Rehearsal:
        if self.world_size > self.gpus_per_node and self.world_size % self.gpus_per_node != 0:
            raise ValueError(f"{self.world_size} GPUs do not fill nodes of {self.gpus_per_node}; choose a multiple of it")
        if self.ranks_per_node > 1 and self.link is None:
            raise ValueError("a node with several GPUs needs a link between them, such as nvlink4")
        if self.num_nodes > 1 and self.network is None:
            raise ValueError(f"{self.num_nodes} nodes need a network between them, such as ib_ndr")
        return self

    @property
    def num_nodes(self) -> int:
        """Whole ones; 1 where the ranks do not fill one."""
        return max(1, self.world_size // self.gpus_per_node)

    @property
    def ranks_per_node(self) -> int:
        """`gpus_per_node`, or all ranks where they do not fill a node."""
        return min(self.world_size, self.gpus_per_node)

    def links(self) -> tuple[LinkModel | None, LinkModel | None]:
        """(inside a node, between nodes).

        Raises:
            UsageError: a link is not known.
        """
        node = load_link(self.link) if self.link is not None and self.ranks_per_node > 1 else None
        network = load_link(self.network) if self.network is not None and self.num_nodes > 1 else None
        return node, network

    def topology(self, ranks: list[int]) -> GroupTopology:
        """Of a group of these global ranks."""
        node, network = self.links()
        return group_topology(ranks, gpus_per_node=self.gpus_per_node, node_link=node, network=network)


_active: Rehearsal | None = None


def active_rehearsal() -> Rehearsal | None:
    """The one that new process groups follow: of the innermost `rehearsed` block, else of $GPUALLOC_REHEARSAL.

    Raises:
        UsageError: the variable holds no rehearsal.
    """
    if _active is not None or VARIABLE not in os.environ:
        return _active
    try:
        return Rehearsal.model_validate_json(os.environ[VARIABLE])
    except ValidationError as error:
        raise UsageError(f"${VARIABLE} holds no rehearsal: {error.errors()[0]['msg']}; unset it, or use gpualloc rehearse") from error


@contextmanager
def rehearsed(rehearsal: Rehearsal) -> Iterator[None]:
    """Process groups that are made inside, whatever backend they ask for, are virtual ones; this process is rank 0.

    Raises:
        NativeUnavailableError: without the compiled extension.
        UsageError: a link is not known.
        GpuallocError: a process group exists already.
    """
    global _active
    register()
    rehearsal.links()  # before anything starts
    if dist.is_initialized():
        raise GpuallocError("a process group exists already; start the rehearsal before init_process_group, or destroy it first")
    before = _active
    _active = rehearsal
    rank_variables = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": str(rehearsal.world_size)}
    rank_variables["LOCAL_WORLD_SIZE"] = str(rehearsal.ranks_per_node)
    rank_variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # as torchrun sets; nobody is called there
    saved = {name: os.environ.get(name) for name in rank_variables}
    os.environ.update(rank_variables)
    replaced = {"_new_process_group_helper": _virtual_groups, "rendezvous": _without_peers}
    originals = {name: getattr(distributed_c10d, name) for name in replaced}
    for name, replace in replaced.items():
        setattr(distributed_c10d, name, replace(originals[name]))
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, original in originals.items():
            setattr(distributed_c10d, name, original)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _active = before


def register() -> None:
    """Makes torch know the backend "gpualloc_virtual". May be called again.

    Raises:
        NativeUnavailableError: without the compiled extension.
    """
    _native.module()
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _make_group, extended_api=True, devices=["cpu", "cuda"])


@contextmanager
def links_take_no_time() -> Iterator[None]:
    """Inside, collectives of virtual groups end at once: what a step takes without communication. For the whole process."""
    native = _native.module()
    native.set_links_take_time(False)
    try:
        yield
    finally:
        native.set_links_take_time(True)


def collective_totals() -> tuple[int, int, float]:
    """(collectives and messages, bytes of their tensors, seconds of each alone on its link) of virtual groups since the process began."""
    totals: tuple[int, int, float] = _native.module().rehearsal_totals()
    return totals


def _make_group(options: Any, backend_options: object) -> Any:
    """A group of torch's `_DistributedBackendOptions`."""
    rehearsal = active_rehearsal()
    if rehearsal is None:
        raise UsageError(f"backend {BACKEND!r} needs to know the cluster: use gpualloc.rehearsal.rehearsed or gpualloc rehearse")
    ranks = list(options.global_ranks_in_group) or list(range(options.group_size))
    topology = rehearsal.topology(ranks)
    own_node = ranks[options.group_rank] // rehearsal.gpus_per_node
    stands_for = _stands_for or _usual_backend()
    return _native.module().make_virtual_group(
        rank=options.group_rank,
        size=options.group_size,
        stands_for=stands_for,
        costs=cost_tables(topology) if len(ranks) > 1 else {},
        uses_network=topology.num_nodes > 1,
        peer_on_network=[rank // rehearsal.gpus_per_node != own_node for rank in ranks],
        max_in_flight=topology.link.collectives_in_flight if len(ranks) > 1 else 1,
    )


_stands_for: str | None = None  # what the script asked for last; an import must not ask for GPUs, which forks could not use then


def _usual_backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def _virtual_groups(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch's constructor of process groups, with the virtual backend in place of the one asked for."""
    signature = inspect.signature(original)

    def make(*args: Any, **kwargs: Any) -> Any:
        global _stands_for
        arguments = signature.bind(*args, **kwargs).arguments
        asked = str(arguments["backend"]).lower()
        if asked in ("nccl", "gloo"):
            _stands_for = asked
        elif asked != BACKEND:
            _stands_for = _usual_backend()
        arguments["backend"] = dist.Backend(BACKEND)
        arguments["backend_options"] = None
        return original(**arguments)

    return make


def _without_peers(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch's rendezvous, with a store of this process alone."""

    def meet(*args: Any, **kwargs: Any) -> Iterator[tuple[distributed_c10d.Store, int, int]]:
        rehearsal = active_rehearsal()
        assert rehearsal is not None
        yield HashStore(), 0, rehearsal.world_size

    return meet
