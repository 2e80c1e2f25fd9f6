"""How much device memory a training step takes, estimated without torch, and the batch size that follows.

    peak = weights + optimizer state + gradients + max(what autograd keeps for the backward pass, temporaries of the optimizer)

What autograd keeps is counted per token (w: width, m: MLP width, k: width of keys and values, T: tokens) as in Korthikanti et al. 2022,
arXiv:2205.05198, 4.1, for blocks without dropout whose attention keeps no T x T scores. In elements of a block:

    GPT, ViT   2 w  inputs of the two norms        14 w             outputs of norms, q, k, v and attention, MLP before and after GELU
    Llama      2 w  inputs of the two norms        4 w + 2 k + 4 m  the same, MLP's gate, up, silu and product

Norms stay in fp32 under autocast, which also makes a copy of a norm's output for every projection and one of every weight. The output
layer adds the logits in fp32, three times. Convolutional networks keep a number of elements per pixel that was counted.
tests/workloads/test_memory.py holds all this to what autograd really keeps. Not counted: CUDA's context, cuDNN's and NCCL's buffers,
fragmentation.
"""

from __future__ import annotations

import dataclasses

from gpualloc.records import BenchCase
from gpualloc.workloads.data import IMAGENET_NUM_CLASSES
from gpualloc.workloads.models import ModelSpec, find_model
from gpualloc.workloads.support import LORA_RANK, default_optimizer

USABLE_SHARE = 0.85  # of a device's memory; the rest is for what is not counted
_BYTES = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "pure_fp16": 2, "pure_bf16": 2, "fp8": 2}
_AUTOCAST = ("fp16", "bf16", "fp8")
_STATES = {"sgd": 1, "adam": 2, "adamw": 2, "adamw_fused": 2, "adafactor": 0}  # numbers kept per trained one
_HAS_TEMPORARIES = ("adam", "adamw", "adafactor")  # one number per trained one while it steps


def count_parameters(case: BenchCase) -> int | None:
    """Parameters of the case's model without adapters; None where it is not a registered one."""
    spec, classes = find_model(case.model, workload=case.workload), IMAGENET_NUM_CLASSES
    if spec.conv is not None:
        return spec.conv.num_body_parameters + (spec.conv.last_channels + 1) * classes
    if spec.gpt is not None:
        length = max(spec.gpt.max_sequence_length, case.sequence_length or 0)
        return (spec.gpt.vocab_size + length + 2) * spec.gpt.width + spec.gpt.num_layers * _gelu_block(spec.gpt.width)
    if spec.llama is not None:
        config = spec.llama
        block = 2 * config.width * (config.width + config.kv_width + 1) + 3 * config.width * config.mlp_width
        return (config.vocab_size * (1 if config.tied_embeddings else 2) + 1) * config.width + config.num_layers * block
    if spec.vit is not None:
        width, patch_elements = spec.vit.width, 3 * spec.vit.patch_size_px**2
        return (patch_elements + 1 + 1 + _num_tokens(case, spec) + 2 + classes) * width + classes + spec.vit.num_layers * _gelu_block(width)
    return None


def count_trained_parameters(case: BenchCase) -> int | None:
    """Those of `count_parameters`, or of the adapters alone where the tuning is LoRA."""
    if case.tuning == "full":
        return count_parameters(case)
    spec = find_model(case.model, workload=case.workload)
    if spec.llama is not None:
        config = spec.llama
        return LORA_RANK * config.num_layers * (9 * config.width + 2 * config.kv_width + 3 * config.mlp_width)
    if spec.gpt is not None:
        return LORA_RANK * spec.gpt.num_layers * 16 * spec.gpt.width
    return None if spec.vit is None else LORA_RANK * spec.vit.num_layers * 18 * spec.vit.width


def kept_bytes_per_sample(case: BenchCase) -> int | None:
    """What autograd keeps for the backward pass of one sample, weights aside; None where the model is not a registered one."""
    spec, narrow = find_model(case.model, workload=case.workload), _BYTES[case.precision]
    autocast = case.precision in _AUTOCAST
    wide = 4 if autocast else narrow
    if spec.conv is not None:
        assert case.image_size_px is not None
        return round(spec.conv.kept_elements_per_pixel * case.image_size_px**2 * narrow)
    config = spec.gpt or spec.llama or spec.vit
    if config is None:
        return None
    width, num_tokens = config.width, _num_tokens(case, spec)
    if spec.llama is not None:
        grouped = narrow == 2 and case.device == "cuda"  # see llama.py
        kv_width = spec.llama.kv_width if grouped else width
        block = 2 * width * wide + (4 * width + 2 * kv_width + 4 * spec.llama.mlp_width + 3 * autocast * width) * narrow
    else:
        block = 2 * width * wide + (14 + (2 if autocast and spec.vit is not None else 0)) * width * narrow
    if case.precision == "fp64" and case.device == "cuda":  # no kernel without scores in memory
        block += 2 * config.num_heads * num_tokens * narrow
    blocks = config.num_layers * block
    if case.activation_checkpointing:
        blocks = config.num_layers * width * wide + block
    ends = width * (wide + narrow)  # the last norm's input and output
    if spec.vocab_size is not None:
        ends += 3 * spec.vocab_size * max(4, narrow)
    return num_tokens * (blocks + ends)


def estimate_memory_bytes(case: BenchCase, *, num_shards: int = 1) -> int | None:
    """Most memory a rank has in use during a step of the case; None where the model is not a registered one.

    Args:
        num_shards: ranks among which weights, gradients and optimizer state are divided.
    """
    parameters, trained, kept = count_parameters(case), count_trained_parameters(case), kept_bytes_per_sample(case)
    if parameters is None or trained is None or kept is None:
        return None
    narrow, autocast = _BYTES[case.precision], case.precision in _AUTOCAST
    trained_bytes = 4 if autocast else narrow
    weights = parameters * trained_bytes
    if case.tuning == "lora":
        weights = parameters * narrow + trained * trained_bytes
    optimizer = case.optimizer or default_optimizer(case.workload)
    gradients, states = trained * trained_bytes, trained * trained_bytes * _STATES[optimizer]
    temporaries = trained * trained_bytes if optimizer in _HAS_TEMPORARIES else 0
    cast_weights = parameters * narrow if autocast and case.tuning == "full" else 0
    wire = 0 if case.hook == "none" else 2 * trained
    activations = cast_weights + kept * case.per_device_batch_size
    return (weights + gradients + states + wire) // num_shards + max(activations, temporaries // num_shards)


def fitting_batch_size(case: BenchCase, *, device_memory_bytes: int, num_shards: int = 1) -> int:
    """The model's default batch size, halved until the estimate fits the device with some room to spare; 0 where not even 1 does.

    The case's own batch size does not count. A model that cannot be estimated has its default.
    """
    size = find_model(case.model, workload=case.workload).default_per_device_batch_size[case.device]
    while size > 0:
        estimate = estimate_memory_bytes(dataclasses.replace(case, per_device_batch_size=size), num_shards=num_shards)
        if estimate is None or estimate <= USABLE_SHARE * device_memory_bytes:
            return size
        size //= 2
    return 0


def device_memory_reason(case: BenchCase, *, device_memory_bytes: int, num_shards: int = 1) -> str | None:
    """Why not even a batch of 1 fits the device, by the estimate, or None where one does."""
    if fitting_batch_size(case, device_memory_bytes=device_memory_bytes, num_shards=num_shards) > 0:
        return None
    estimate = estimate_memory_bytes(dataclasses.replace(case, per_device_batch_size=1), num_shards=num_shards)
    assert estimate is not None
    smaller = "" if case.tuning == "lora" else "tune with lora in bf16, "
    return (
        f"training {case.model} ({case.tuning} tuning, {case.precision}) takes about {estimate / 2**30:.0f} GiB a rank with a batch of 1 "
        f"and the device has {device_memory_bytes / 2**30:.0f}; {smaller}shard it or choose a smaller model"
    )


def _gelu_block(width: int) -> int:
    return 12 * width**2 + 13 * width


def _num_tokens(case: BenchCase, spec: ModelSpec) -> int:
    if spec.vit is None:
        assert case.sequence_length is not None
        return case.sequence_length
    assert case.image_size_px is not None
    return 1 + (case.image_size_px // spec.vit.patch_size_px) ** 2
