"""The hooks of the comparisons: name -> what is registered with DDP, and the gradient bytes it hands to all-reduce.

none                      DDP's own all-reduce
torch_allreduce           torch's default hooks: DDP's all-reduce as a hook,
torch_fp16, torch_bf16    and those of 16 bits
torch_powersgd            torch's PowerSGD, rank 2
gpualloc_WIRE             gpualloc.register_comm_hook(ddp, wire=WIRE); options follow after colons: gpualloc_fp16:wire_scale=dynamic
package.module:function   any hook that takes (None, bucket)
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import gpualloc

DEFAULT_HOOKS = (
    "none",
    "torch_fp16",
    "torch_bf16",
    "torch_powersgd",
    "gpualloc_fp16",
    "gpualloc_bf16",
    "gpualloc_auto",
    "gpualloc_int8",
)
_TORCH = {  # and bytes an element
    "torch_allreduce": (default_hooks.allreduce_hook, 4),
    "torch_fp16": (default_hooks.fp16_compress_hook, 2),
    "torch_bf16": (default_hooks.bf16_compress_hook, 2),
}
_GPUALLOC = "gpualloc_"


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A registered hook."""

    count_wire_bytes: Callable[[int], int] | None  # number of steps so far -> gradient bytes so far; None: not known
    handle: gpualloc.HookHandle | None = None


def check_name(hook: str) -> None:
    """Raises ValueError for a name that is none of those above."""
    if hook not in ("none", "torch_powersgd", *_TORCH) and not hook.startswith(_GPUALLOC) and ":" not in hook:
        raise ValueError(f"hook {hook!r}; choose of {', '.join(DEFAULT_HOOKS)}, gpualloc_WIRE[:option=value...] or package.module:function")


def ddp_options(hook: str, backend: str, num_bytes: int) -> dict[str, Any]:
    """What DDP is wrapped with for this hook, on a model of `num_bytes` of gradients.

    PowerSGD starts collectives when others end. gloo runs them in that order, another one on every rank, and dies: there it
    gets a single bucket, whose collectives follow one another.
    """
    one_bucket = hook == "torch_powersgd" and backend == "gloo"
    return {"gradient_as_bucket_view": True, **({"bucket_cap_mb": num_bytes / 2**20 + 1} if one_bucket else {})}


def attach(hook: str, ddp_model: DistributedDataParallel) -> Attached:
    """Registers the hook; whatever it refuses with is raised."""
    numel = sum(parameter.numel() for parameter in ddp_model.parameters() if parameter.requires_grad)
    if hook == "none":
        return Attached(count_wire_bytes=lambda steps: steps * numel * 4)
    if hook in _TORCH:
        function, width = _TORCH[hook]
        ddp_model.register_comm_hook(None, function)
        return Attached(count_wire_bytes=lambda steps: steps * numel * width)
    if hook == "torch_powersgd":
        # 2 is the earliest start that torch allows; an epsilon keeps columns of zeros from becoming NaN.
        state = PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2, orthogonalization_epsilon=1e-8)
        ddp_model.register_comm_hook(state, powerSGD_hook)
        return Attached(count_wire_bytes=lambda steps: state.total_numel_after_compression * 4)
    if hook.startswith(_GPUALLOC):
        wire, *pairs = hook.removeprefix(_GPUALLOC).split(":")
        options = {name: _value(text) for name, text in (pair.split("=", 1) for pair in pairs)}
        handle = gpualloc.register_comm_hook(ddp_model, wire=wire, **options)
        return Attached(count_wire_bytes=lambda steps: handle.stats().wire_bytes, handle=handle)
    module, function = hook.split(":", 1)
    ddp_model.register_comm_hook(None, getattr(importlib.import_module(module), function))
    return Attached(count_wire_bytes=None)


def _value(text: str) -> Any:
    """True, 8 and 0.5 as such, other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
