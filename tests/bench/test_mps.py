"""The MPS daemon's life, with a script in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpualloc.bench import mps
from gpualloc.bench.runner import _describe_backend, rank_environment
from tests.bench.cases import tiny_case

_SHARED = tiny_case(device="cuda", ranks_per_gpu=4, world_size=4)


def install_control(folder: Path, monkeypatch: pytest.MonkeyPatch, *, exit_code: int) -> Path:
    """A stand-in for nvidia-cuda-mps-control that writes what it is called with to the file returned."""
    log, program = folder / "calls", folder / "nvidia-cuda-mps-control"
    program.write_text(f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY $@ $(cat)" >> {log}\nexit {exit_code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return log


def test_a_daemon_is_started_and_quit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install_control(tmp_path, monkeypatch, exit_code=0)
    with mps.mps_daemon(tmp_path) as places:
        assert places is not None
        assert calls.read_text().split() == [f"{tmp_path}/mps-pipe", "-d"]
    assert calls.read_text().splitlines()[1].split() == [f"{tmp_path}/mps-pipe", "quit", "-t", "5"]


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_daemon_the_ranks_are_time_sliced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if installed:
        install_control(tmp_path, monkeypatch, exit_code=1)
    else:
        monkeypatch.setenv("PATH", "")
    with mps.mps_daemon(tmp_path) as places:
        assert places is None


def test_ranks_of_a_shared_gpu_look_like_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    environments = [rank_environment(_SHARED, rank, {"CUDA_MPS_PIPE_DIRECTORY": "/p"}) for rank in range(4)]
    assert len({environment["NCCL_HOSTID"] for environment in environments}) == 4
    assert {environment["NCCL_SOCKET_IFNAME"] for environment in environments} == {"lo"}
    assert {environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] for environment in environments} == {"25"}
    assert not any("CUDA_VISIBLE_DEVICES" in environment for environment in environments)
    assert rank_environment(_SHARED, 0, None)["CUDA_VISIBLE_DEVICES"] == "3"
    assert "NCCL_HOSTID" not in rank_environment(tiny_case(device="cuda"), 0, None)


def test_the_backend_says_how_a_gpu_is_shared() -> None:
    assert _describe_backend(_SHARED, has_slices=True) == "nccl over loopback TCP, 4 ranks a GPU (MPS slices)"
    assert "time-sliced, a single process has the whole GPU" in str(_describe_backend(_SHARED, has_slices=False))
    assert _describe_backend(tiny_case(device="cuda", ranks_per_gpu=4, strategy="single"), has_slices=True) == "one of 4 MPS slices"
    assert _describe_backend(tiny_case(), has_slices=False) == "gloo"
