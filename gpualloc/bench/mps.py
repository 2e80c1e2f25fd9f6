"""A node of slices on one GPU: NVIDIA's Multi-Process Service lets the ranks that share a card compute side by side.

Each case gets a daemon of its own, since one client's fault takes the next clients of that daemon with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

_CONTROL = "nvidia-cuda-mps-control"
_TIMEOUT_S = 20.0


@contextlib.contextmanager
def mps_daemon(folder: Path) -> Iterator[dict[str, str] | None]:
    """Runs a daemon with its pipes and logs in `folder`; gives the environment of its clients, or None where none can be started."""
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps-pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    if shutil.which(_CONTROL) is None:
        yield None
        return
    try:
        yield places if _start(places) else None
    finally:
        _quit(places)


def sharing_environment(rank: int) -> dict[str, str]:
    """What lets a rank share its GPU: NCCL refuses two ranks of one host on a GPU; of several hosts it takes them, and they talk TCP."""
    return {"NCCL_HOSTID": f"gpualloc-rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def client_environment(base: Mapping[str, str], places: Mapping[str, str], *, ranks_per_gpu: int) -> dict[str, str]:
    """What a rank's process is started with, to get its equal share of the card's multiprocessors."""
    environment = {**base, **places, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(100 // ranks_per_gpu)}
    # The daemon was started with this variable and has renumbered the GPUs it names; a client that applied it again would see others.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def _start(places: Mapping[str, str]) -> bool:
    for folder in places.values():
        Path(folder).mkdir()
    try:
        started = _control(places, "-d")
    except (OSError, subprocess.TimeoutExpired):
        return False
    return started.returncode == 0


def _quit(places: Mapping[str, str]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if _control(places, commands="quit -t 5\n").returncode == 0:
            return
    with contextlib.suppress(OSError, ValueError):  # it does not answer
        os.kill(int(Path(places["CUDA_MPS_PIPE_DIRECTORY"], f"{_CONTROL}.pid").read_text()), signal.SIGKILL)


def _control(places: Mapping[str, str], *arguments: str, commands: str = "") -> subprocess.CompletedProcess[str]:
    # Its output is not captured: the daemon would hold the pipe open. A session of its own keeps Ctrl-C from it.
    return subprocess.run(
        [_CONTROL, *arguments],
        env={**os.environ, **places},
        input=commands,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        start_new_session=True,
    )
