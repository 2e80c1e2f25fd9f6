"""Rows whose best answer is known by hand: 100 samples/s on one GPU in fp32, 160 in fp16, batch 64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpualloc.advice import Advice, Evidence, advise, make_job, select_evidence
from gpualloc.advice.records import RentOf
from gpualloc.records import Measurement
from tests.store.sample_measurements import GPU_ENVIRONMENT, image_case, llm_case, measured

EIGHT_GPUS = replace(GPU_ENVIRONMENT, device_name="NVIDIA H100 80GB HBM3", num_devices=8)
FP32_S, FP16_S = 0.64, 0.40
EFFICIENCIES = {2: 0.95, 4: 0.875, 8: 0.7}
TWO_EUROS = RentOf(amount_per_gpu_hour=2.0, currency="EUR", described="made", is_example=False)


def single(**changes: Any) -> Any:
    return image_case(**{"strategy": "single", "world_size": 1, **changes})


def row(case: Any, step_time_s: float, *, spread: float = 0.004, **changes: Any) -> Measurement:
    return measured(case, step_time_s, spread=spread, environment=EIGHT_GPUS, **changes)


def scaling_run(**case: Any) -> list[Measurement]:
    """One GPU in two precisions, several in fp16 with ddp/none."""
    rows = [row(single(precision="fp32", **case), FP32_S), row(single(precision="fp16", **case), FP16_S)]
    return rows + [
        row(image_case(precision="fp16", world_size=count, **case), FP16_S / efficiency) for count, efficiency in EFFICIENCIES.items()
    ]


def evidence_of(rows: list[Measurement], **only: Any) -> Evidence:
    return select_evidence(list(reversed(rows)), only={name: (value,) for name, value in only.items()})


def advice_on(rows: list[Measurement], *, job: dict[str, Any] | None = None, **arguments: Any) -> Advice:
    return advise(evidence_of(rows), make_job(**(job or {})), **{"rent": TWO_EUROS, **arguments})


__all__ = [
    "EFFICIENCIES",
    "EIGHT_GPUS",
    "FP16_S",
    "FP32_S",
    "TWO_EUROS",
    "advice_on",
    "evidence_of",
    "llm_case",
    "row",
    "scaling_run",
    "single",
]
