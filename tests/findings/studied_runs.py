"""Runs with known answers, among them one with the study's figures."""

from __future__ import annotations

from typing import Any

from gpualloc.records import Measurement
from tests.store.sample_measurements import image_case, llm_case, measured

SIZES_PX = (100, 200, 300, 400, 500)
FP32_GAINS = (1.54, 1.58, 1.62, 1.66, 1.68)  # over fp64, by image size
FP16_GAINS = (2.10, 2.24, 2.35, 2.45, 2.52)
EFFICIENCY_OF_TWO = (0.62, 0.825, 0.90, 0.93, 0.95)
EFFICIENCY_OF_FOUR = (0.41, 0.62, 0.806, 0.86, 0.90)  # crosses 80 % at 298 px


def single(**changes: Any) -> Any:
    return image_case(**{"strategy": "single", "world_size": 1, **changes})


def study_run(*, spread: float = 0.01) -> list[Measurement]:
    """Precisions on one GPU, and two and four GPUs in fp32, at five image sizes."""
    rows = []
    for index, size in enumerate(SIZES_PX):
        fp64_s = 0.02 * (size / 100) ** 2
        fp32_s = fp64_s / FP32_GAINS[index]
        rows += [
            measured(single(image_size_px=size, precision="fp64"), fp64_s, spread=spread),
            measured(single(image_size_px=size, precision="fp32"), fp32_s, spread=spread),
            measured(single(image_size_px=size, precision="fp16"), fp64_s / FP16_GAINS[index], spread=spread),
        ]
        for world_size, efficiencies in ((2, EFFICIENCY_OF_TWO), (4, EFFICIENCY_OF_FOUR)):
            case = image_case(image_size_px=size, precision="fp32", world_size=world_size)
            rows.append(measured(case, fp32_s / efficiencies[index], spread=spread))
    return rows


def details_run(*, spread: float = 0.01) -> list[Measurement]:
    """Pinned memory gains 2, 8 and 20 % on one, two and four GPUs; channels-last 5 % on any."""
    rows = []
    for world_size, gain in ((1, 1.02), (2, 1.08), (4, 1.20)):
        how = {"strategy": "single" if world_size == 1 else "ddp", "world_size": world_size}
        step_time_s = 0.05 * (1 + 0.1 * world_size)
        rows += [
            measured(image_case(**how), step_time_s, spread=spread),
            measured(image_case(**how, pin_memory=False), step_time_s * gain, spread=spread),
            measured(image_case(**how, channels_last=True), step_time_s / 1.05, spread=spread),
        ]
    return rows


def batches_run() -> list[Measurement]:
    """Language model: two GPUs pay between 8 and 16 samples per rank."""
    rows = []
    for batch, efficiency in ((4, 0.5), (8, 0.7), (16, 0.9)):
        alone = llm_case(strategy="single", world_size=1, per_device_batch_size=batch)
        rows += [measured(alone, 0.01 * batch), measured(llm_case(per_device_batch_size=batch), 0.01 * batch / efficiency)]
    return rows
