"""Cases for the workload tests: small, on the CPU, fp32."""

from __future__ import annotations

from typing import Any

from gpualloc.records import BenchCase

_IMAGE = {"workload": "image", "model": "mobilenet_v2", "image_size_px": 32, "sequence_length": None, "per_device_batch_size": 4}
_LLM = {"workload": "llm", "model": "gpt_small", "image_size_px": None, "sequence_length": 16, "per_device_batch_size": 2}
_COMMON = {
    "precision": "fp32",
    "strategy": "single",
    "hook": "none",
    "device": "cpu",
    "world_size": 1,
    "ranks_per_gpu": 1,
    "data": "synthetic",
    "num_warmup_steps": 0,
    "num_steps": 1,
    "num_repeats": 1,
    "seed": 0,
}


def image_case(**changes: Any) -> BenchCase:
    return BenchCase(**{**_COMMON, **_IMAGE, **changes})


def llm_case(**changes: Any) -> BenchCase:
    return BenchCase(**{**_COMMON, **_LLM, **changes})
