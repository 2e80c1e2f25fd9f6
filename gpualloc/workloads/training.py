"""The training step's parts that depend on the case: model, loss, optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpualloc.records import BenchCase
from gpualloc.workloads.data import describe_data
from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from gpualloc.workloads.models import find_model
from gpualloc.workloads.seeds import derive_seed

# The loss falls within 30 steps at the batch sizes of a CPU bench, which tests/workloads/test_training.py holds them to; with a
# batch of 16 images and momentum 0.9 a rate of 0.05 makes it rise instead.
_SGD_LEARNING_RATE = 0.01
_ADAMW_LEARNING_RATE = 3e-4


def build_model(case: BenchCase) -> nn.Module:
    """The case's model on the CPU in fp32; its weights depend on `case.seed` alone and the global generators stay as they were.

    Raises:
        UsageError: the model is unknown, or the data cannot be read.
    """
    spec = find_model(case.model, workload=case.workload)
    # Seeding the CPU generator directly: torch.manual_seed would reach the GPUs' generators too, which are not saved here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(case.seed, "weights"))
        if spec.gpt is None:
            return MobileNetV2(num_classes=describe_data(case).num_classes)
        length = max(spec.gpt.max_sequence_length, case.sequence_length or 0)
        return Gpt(dataclasses.replace(spec.gpt, max_sequence_length=length))


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy as a scalar: fp32, also under autocast, or fp64 for an fp64 model."""
    inputs, targets = batch
    logits: Tensor = model(inputs)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def make_optimizer(case: BenchCase, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum for images, AdamW for language models."""
    if case.workload == "image":
        return torch.optim.SGD(parameters, lr=_SGD_LEARNING_RATE, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=_ADAMW_LEARNING_RATE)
