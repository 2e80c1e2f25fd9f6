"""What a case asks for that its model cannot do, known without torch."""

from __future__ import annotations

import importlib.util

from gpualloc.records import BenchCase
from gpualloc.workloads.models import find_model

OPTIMIZERS = ("sgd", "adam", "adamw", "adamw_fused", "adafactor")
TUNINGS = ("full", "lora")
LORA_RANK = 16


def default_optimizer(workload: str) -> str:
    """The optimiser a case has that names none."""
    return "sgd" if workload == "image" else "adamw"


def unsupported_reason(case: BenchCase) -> str | None:
    """Why this case's model or data cannot be measured as it asks, or None where it can.

    Raises:
        UsageError: the model is unknown.
    """
    spec = find_model(case.model, workload=case.workload)
    if case.precision == "fp8" and spec.conv is not None:
        return f"fp8 is for Linear layers and {case.model} computes with convolutions; measure bf16"
    if case.tuning == "lora":
        if spec.conv is not None:
            return f"LoRA adapts Linear layers and {case.model} computes with convolutions; choose tuning full"
        if case.precision == "fp8":
            return "fp8 narrows the weights that are trained and LoRA trains none of them; measure bf16"
        if importlib.util.find_spec("peft") is None:
            return "LoRA needs peft, which is not installed here; run: pip install 'gpualloc[lora]'"
    if case.channels_last and case.workload != "image":
        return f"channels-last is a memory format of images and {case.model} is a language model"
    if case.pin_memory and case.device != "cuda":
        return "pinned memory is for copies to a GPU"
    if spec.is_user_model and case.num_workers is not None:
        return "a model of your own makes its batches in the training process, before the first step; leave the number of workers out"
    return None
