"""The ranks of a script under torchrun: who this process is, and how rank 0 gets the profiles of all.

The profiles go through the key-value store that torchrun's agent keeps for its workers, so that it does not matter whether the script's
process group still exists.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from typing import Any

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.profiling.records import RankProfile, rank_from_json, rank_to_json

_WAIT_S = 300.0  # for the other ranks, which end their own training at about the same time


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among the ranks."""

    rank: int
    world_size: int
    num_local_ranks: int  # on this machine


def find_place() -> Place:
    """From torchrun's environment; the only rank without it.

    Raises:
        UsageError: there are several ranks and another launcher started them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") != "True":
        raise UsageError(
            f"WORLD_SIZE is {world_size} and torchrun did not start this process; start the ranks with: "
            f"torchrun --nproc-per-node {world_size} --no-python gpualloc profile -- train.py"
        )
    if world_size == 1:
        return Place(rank=0, world_size=1, num_local_ranks=1)
    return Place(rank=int(os.environ["RANK"]), world_size=world_size, num_local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def trace_folder_name() -> str:
    """The same on all ranks of a machine: when torchrun started, and its process."""
    import psutil

    parent = psutil.Process(os.getppid())
    started = datetime.datetime.fromtimestamp(parent.create_time(), tz=datetime.timezone.utc)
    return f"{started:%Y%m%d-%H%M%S}-{parent.pid}"


def exchange(place: Place, profile: RankProfile | None, error: str | None = None) -> list[RankProfile]:
    """Hands this rank's profile, or why there is none, to rank 0. Returns all of them there, and [] on the others.

    Raises:
        GpuallocError: on rank 0: another rank has none, or did not answer.
    """
    if place.world_size == 1:
        return [] if profile is None else [profile]
    store = _open_store()
    words = {"profile": None if profile is None else rank_to_json(profile), "error": error}
    store.set(_key(place.rank), json.dumps(words))
    if place.rank != 0:
        return []
    found = []
    for rank in range(place.world_size):
        try:
            answer = json.loads(store.get(_key(rank)))
        except RuntimeError as failure:  # DistStoreError
            raise GpuallocError(f"rank {rank} has not handed in its profile after {_WAIT_S:.0f} s; see what it printed") from failure
        if answer["profile"] is None:
            raise GpuallocError(f"rank {rank} has no profile: {answer['error']}")
        found.append(rank_from_json(answer["profile"]))
    return found


def _key(rank: int) -> str:
    return f"gpualloc/profile/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _open_store() -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = datetime.timedelta(seconds=_WAIT_S)
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
