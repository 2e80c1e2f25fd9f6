"""Cases small enough to run in a few seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpualloc.records import BenchCase

NUM_PARAMETERS = 3_504_872  # of MobileNetV2 with 1000 classes


def tiny_case(**changes: Any) -> BenchCase:
    """MobileNetV2 at 32 px, two gloo ranks, two steps."""
    case = BenchCase(
        workload="image",
        model="mobilenet_v2",
        image_size_px=32,
        sequence_length=None,
        per_device_batch_size=8,  # with fewer, batch normalisation at 32 px makes gradients too large for fp16
        precision="fp32",
        strategy="ddp",
        hook="none",
        device="cpu",
        world_size=2,
        ranks_per_gpu=1,
        data="synthetic",
        num_warmup_steps=1,
        num_steps=2,
        num_repeats=1,
        seed=0,
    )
    return replace(case, **changes)
