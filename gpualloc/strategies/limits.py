"""What cannot be measured, and why: cheap enough to ask before any process starts."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gpualloc.strategies.layout import MIN_HYBRID_WORLD_SIZE, NUM_REPLICAS, WHOLE_MODEL, num_microbatches, num_stages
from gpualloc.workloads.models import GptConfig, LlamaConfig, find_model

if TYPE_CHECKING:
    from gpualloc.records import BenchCase

_NUM_PARTS = {"mobilenet_v2": 20}  # of `parts()`; a GPT has one a layer, and its embedding and its head


def unsupported_reason(case: BenchCase, *, num_gpus: int) -> str | None:
    """Why the case's strategy or hook cannot run here, or None where it can.

    Args:
        num_gpus: visible GPUs; 0 on a CPU machine.
    """
    reason = _rehearsal_reason(case) or _hook_reason(case) or _detail_reason(case)
    if reason is None and case.strategy in _REASONS:
        reason = _REASONS[case.strategy](case, num_gpus)
    return reason


def _rehearsal_reason(case: BenchCase) -> str | None:
    if not case.is_rehearsed:
        return None
    if case.strategy in ("pipeline", "pipeline_ddp"):
        return "a stage waits for other stages' computing, and a rehearsal has one stage's alone"
    if case.strategy == "data_parallel":
        return "DataParallel is one process that drives all its GPUs; without them it cannot be rehearsed, ddp can"
    return None


def _hook_reason(case: BenchCase) -> str | None:
    hook, precision = case.hook, case.precision
    if hook != "none" and case.strategy != "ddp":
        return f"hooks are for ddp; measure {case.strategy} with hook none"
    if hook == "torch_bf16" and case.device == "cpu":
        return "torch refuses its bf16 hook without NCCL, and gloo is what a CPU has"
    if hook == "torch_powersgd":
        if importlib.util.find_spec("numpy") is None:
            return "torch's PowerSGD hook needs numpy; pip install numpy"
        if precision == "fp16":
            return "a GradScaler's search for its scale overflows, and PowerSGD's error feedback never forgets an inf"
    if hook.startswith("gpualloc_") and precision == "fp64":
        return "gpualloc hooks pass fp64 gradients through unchanged; measure hook none"
    return None


def _detail_reason(case: BenchCase) -> str | None:
    if case.strategy in WHOLE_MODEL - {"data_parallel"}:
        return None
    if case.compile:
        return f"torch.compile is measured where a rank has the whole model, and {case.strategy} takes it apart or copies it"
    if case.precision == "fp8":
        return f"fp8 is measured where a rank has the whole model, and {case.strategy} takes it apart or copies it"
    return None


def _transformer_of_tokens(case: BenchCase) -> GptConfig | LlamaConfig | None:
    spec = find_model(case.model, workload=case.workload)
    return spec.gpt or spec.llama


def _data_parallel_reason(case: BenchCase, num_gpus: int) -> str | None:
    if case.device == "cpu":
        return "DataParallel spreads a batch over GPUs; on a CPU it is the model itself, measure single"
    if case.ranks_per_gpu > 1:
        return "DataParallel is one process with a GPU for each replica; it cannot share one, use --ranks-per-gpu 1"
    if case.world_size < 2 or num_gpus < case.world_size:
        return f"DataParallel needs two GPUs or more, here are {min(num_gpus, case.world_size)}; with one it is the model itself"
    return None


def _fsdp_reason(case: BenchCase, num_gpus: int) -> str | None:
    if case.channels_last:
        return "FSDP2 shards contiguous parameters only, channels-last weights are not"
    if case.tuning == "lora" and case.precision in ("fp16", "bf16"):
        mixture = f"LoRA in {case.precision} has FP32 adapters beside half weights"
        return f"FSDP2 gathers parameters of one type, and {mixture}; measure pure_{case.precision}"
    return None


def _hsdp_reason(case: BenchCase, num_gpus: int) -> str | None:
    return _hybrid_reason(case) or _fsdp_reason(case, num_gpus)


def _tensor_parallel_reason(case: BenchCase, num_gpus: int) -> str | None:
    if case.world_size < 2:
        return "tensor parallelism splits layers over two ranks or more"
    config = _transformer_of_tokens(case)
    if config is None:
        return f"there is no tensor-parallel plan for {case.model}, only for transformers that read tokens"
    num_heads = config.num_kv_heads if isinstance(config, LlamaConfig) else config.num_heads
    if num_heads % case.world_size != 0:
        kind = "key-value" if isinstance(config, LlamaConfig) else "attention"
        return f"{case.model} has {num_heads} {kind} heads, which {case.world_size} ranks cannot share equally"
    if case.tuning != "full":
        return f"the tensor-parallel plan is for the model's own layers, not for tuning {case.tuning}"
    return None


def _pipeline_reason(case: BenchCase, num_gpus: int) -> str | None:
    if case.world_size < 2:
        return "a pipeline has two stages or more, each a rank"
    config = _transformer_of_tokens(case)
    num_parts = config.num_layers + 2 if config is not None else _NUM_PARTS.get(case.model)
    if case.tuning != "full":
        return f"a pipeline is cut from the model's own layers, not for tuning {case.tuning}"
    if num_parts is None:
        return f"there is no way to cut {case.model} into stages"
    if num_parts < num_stages(case):
        return f"{case.model} can be cut into {num_parts} parts and the pipeline has {num_stages(case)} stages"
    if case.grad_accum_steps > 1:
        return "a pipeline's micro-batches are accumulation already; use --grad-accum 1"
    if num_microbatches(case) is None:
        multiple = num_stages(case) * (2 if case.workload == "image" else 1)
        return f"{case.per_device_batch_size} samples cannot be cut into equal micro-batches for the stages; use a multiple of {multiple}"
    return None


def _pipeline_ddp_reason(case: BenchCase, num_gpus: int) -> str | None:
    return _hybrid_reason(case) or _pipeline_reason(case, num_gpus)


def _hybrid_reason(case: BenchCase) -> str | None:
    if case.world_size < MIN_HYBRID_WORLD_SIZE or case.world_size % NUM_REPLICAS != 0:
        return f"{case.strategy} is {NUM_REPLICAS} copies of a model over 2 ranks or more each, and {case.world_size} ranks are not that"
    return None


_REASONS = {
    "data_parallel": _data_parallel_reason,
    "fsdp": _fsdp_reason,
    "hsdp": _hsdp_reason,
    "tensor_parallel": _tensor_parallel_reason,
    "pipeline": _pipeline_reason,
    "pipeline_ddp": _pipeline_ddp_reason,
}
