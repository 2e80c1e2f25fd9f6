"""Skips what this machine cannot run, by marker and with the reason."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.distributed as dist

from benchmarks.network_lab import why_no_lab
from tests.browser import why_no_browser
from tests.launch.slurm_cluster import why_no_slurm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if not dist.is_nccl_available():
        missing["nccl"] = "needs NCCL"
    if any(item.get_closest_marker("browser") for item in items) and (reason := why_no_browser()) is not None:
        missing["browser"] = reason
    if any(item.get_closest_marker("netlab") for item in items) and (reason := why_no_lab()) is not None:
        missing["netlab"] = reason
    if any(item.get_closest_marker("slurm") for item in items) and (reason := why_no_slurm()) is not None:
        missing["slurm"] = reason
    if importlib.util.find_spec("ray") is None:
        missing["ray"] = "needs ray"
    if "soak" not in config.getoption("markexpr"):
        missing["soak"] = "takes minutes; run it with: pytest -m soak"
    if "docs" not in config.getoption("markexpr"):
        missing["docs"] = "takes half an hour; run it with: pytest -m docs"
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
                break
