"""The training step's parts that depend on the case: model, loss, optimiser."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpualloc.records import BenchCase
from gpualloc.workloads.data import describe_data
from gpualloc.workloads.gpt import Gpt
from gpualloc.workloads.libraries import build_library_model
from gpualloc.workloads.llama import Llama
from gpualloc.workloads.lora import add_adapters
from gpualloc.workloads.mobilenet_v2 import MobileNetV2
from gpualloc.workloads.models import find_model
from gpualloc.workloads.resnet50 import ResNet50
from gpualloc.workloads.seeds import derive_seed
from gpualloc.workloads.support import default_optimizer
from gpualloc.workloads.user_model import build_user_model
from gpualloc.workloads.vit import VisionTransformer

# The loss falls within 30 steps at the batch sizes of a CPU bench, which tests/workloads/test_training.py holds them to; with a
# batch of 16 images and momentum 0.9 a rate of 0.05 makes it rise instead.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=3e-4),
    "adamw": functools.partial(torch.optim.AdamW, lr=3e-4),
    "adamw_fused": functools.partial(torch.optim.AdamW, lr=3e-4, fused=True),
    "adafactor": functools.partial(torch.optim.Adafactor, lr=0.01),
}
_FP16_ADAM_EPS = 1e-4  # the usual 1e-8 is 0 in fp16, and 0 / 0 where a gradient is 0
_LOSS = "_gpualloc_loss"  # attribute of a user's model; strategies pass models, not cases, to `compute_loss`


def build_model(
    case: BenchCase, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32, frozen_dtype: torch.dtype | None = None
) -> nn.Module:
    """The case's model, with adapters where its tuning is LoRA.

    Its weights depend on `case.seed` and the kind of device alone, and the global generators stay as they were. Models of the user's
    are built on the CPU and moved; all others come to be on the device, so that 8 B parameters need no memory of the host.

    Args:
        device: default CPU.
        dtype: of the parameters that are trained.
        frozen_dtype: of those that are not, where the tuning is LoRA; default `dtype`.

    Raises:
        UsageError: the model is unknown or cannot be built, or the data cannot be read.
    """
    device = device or torch.device("cpu")
    lora = case.tuning == "lora"
    base_dtype = (frozen_dtype or dtype) if lora else dtype
    with _seeded(derive_seed(case.seed, "weights"), device):
        if find_model(case.model, workload=case.workload).is_user_model:
            workload = build_user_model(case)
            model = workload.model.to(device=device, dtype=base_dtype)
            model.__dict__[_LOSS] = workload.loss  # not as a submodule, if it is one
        else:
            # fp64 weights are the fp32 ones: drawing doubles would give others.
            with device, _default_dtype(torch.float32 if base_dtype == torch.float64 else base_dtype):
                model = _make_model(case).to(base_dtype)
        if lora:
            add_adapters(model, dtype=dtype)
    return model


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, or the user's loss, as a scalar: of outputs in fp32, also under autocast, or fp64 for an fp64 model."""
    inputs, targets = batch
    outputs: Tensor = model(inputs)
    return find_loss(model)(outputs if outputs.dtype == torch.float64 else outputs.float(), targets)


def find_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """loss(outputs, targets) of a model that `build_model` made, wrapped in DDP or not."""
    for module in (model, getattr(model, "module", model)):
        if hasattr(module, _LOSS):
            loss: Callable[[Tensor, Tensor], Tensor] = getattr(module, _LOSS)
            return loss
    return _cross_entropy


def make_optimizer(case: BenchCase, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The case's optimiser, of those parameters that are trained. Default: SGD with momentum for images, AdamW for language models."""
    name = case.optimizer or default_optimizer(case.workload)
    settings: dict[str, Any] = {}
    if case.precision == "pure_fp16" and name.startswith("adam"):
        settings["eps"] = _FP16_ADAM_EPS
    return _OPTIMIZERS[name]([parameter for parameter in parameters if parameter.requires_grad], **settings)


def _make_model(case: BenchCase) -> nn.Module:
    spec = find_model(case.model, workload=case.workload)
    if spec.gpt is not None:
        length = max(spec.gpt.max_sequence_length, case.sequence_length or 0)
        return Gpt(dataclasses.replace(spec.gpt, max_sequence_length=length))
    if spec.llama is not None:
        return Llama(spec.llama)
    num_classes = describe_data(case).num_classes
    assert case.image_size_px is not None
    assert num_classes is not None
    if spec.vit is not None:
        return VisionTransformer(spec.vit, image_size_px=case.image_size_px, num_classes=num_classes)
    if spec.library is not None:
        return build_library_model(spec.name, image_size_px=case.image_size_px, num_classes=num_classes)
    return (ResNet50 if spec.name == "resnet50" else MobileNetV2)(num_classes=num_classes)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the two generators that are put back afterwards; torch.manual_seed would reach all GPUs' generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
