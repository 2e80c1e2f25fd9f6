"""The cluster that is rehearsed, as a user names it: checked before any process starts. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpualloc.errors import UsageError
from gpualloc.rehearsal.link_model import load_link

_DEFAULT_GPUS_PER_NODE = 8


class Cluster(NamedTuple):
    """Nodes and what joins them; links are names or files, None where nothing needs one."""

    gpus_per_node: int
    link: str | None
    network: str | None


def make_cluster(sizes: Sequence[int], *, gpus_per_node: int | None, link: str | None, network: str | None) -> Cluster:
    """The cluster of which `sizes` GPUs are rehearsed. A network given as `link` alone means nodes of one GPU.

    Raises:
        UsageError: a link is not known or of the wrong level, one is missing, or a size does not fill its nodes.
    """
    if link is None and network is None and max(sizes) > 1:
        raise UsageError(
            "what joins the GPUs? Name it: --link nvlink4 inside nodes, --network ib_ndr between them, or measure it: gpualloc calibrate"
        )
    if link is not None and load_link(link).level == "network" and network is None and gpus_per_node in (None, 1):
        link, network, gpus_per_node = None, link, 1
    if link is not None and load_link(link).level != "node":
        raise UsageError(f"--link {link} is a network between nodes; give it as --network, and --link for the GPUs of a node")
    if network is not None and load_link(network).level != "network":
        raise UsageError(f"--network {network} is a link inside a node; give it as --link")
    if gpus_per_node is None:
        gpus_per_node = 1 if link is None else _DEFAULT_GPUS_PER_NODE
    for size in sizes:
        if size > gpus_per_node and size % gpus_per_node != 0:
            raise UsageError(f"{size} GPUs do not fill nodes of {gpus_per_node}; choose a multiple of it, or --gpus-per-node")
    if gpus_per_node > 1 and link is None and max(sizes) > 1:
        raise UsageError(
            f"what joins the {gpus_per_node} GPUs of a node? Name it, such as --link nvlink4, or measure it: gpualloc calibrate"
        )
    if max(sizes) > gpus_per_node and network is None:
        raise UsageError(
            f"{max(sizes)} GPUs are {max(sizes) // gpus_per_node} nodes of {gpus_per_node}; name what joins them, such as --network ib_ndr"
        )
    return Cluster(gpus_per_node, link, network)
