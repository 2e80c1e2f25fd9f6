"""Counts what a step asks of the device: floating-point operations by torch's own formulas, and bytes moved, operator by operator.

The formulas are those of torch.utils.flop_counter: matrix products, convolutions and attention, forward and backward, a multiply-add as two
operations. Elementwise operators count none. Activations that are computed twice count twice, so that with activation checkpointing the
figure is what the hardware does, not what the model asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from gpualloc.profiling.records import Costs, MachineSpeed

_FORMATS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_NO_TRAFFIC = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "set_", "resize_"))
_WRITE_ONLY = frozenset(("copy_", "zero_", "fill_", "_foreach_copy_", "_foreach_zero_"))  # what they change they do not read
_NOT_COMPUTING = frozenset(("c10d", "_c10d_functional", "prim"))
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # which the registry lacks in torch 2.13


@dataclass(frozen=True)
class OpCost:
    """One call of one operator."""

    name: str
    format: str  # of its first tensor, such as "bf16"; "tf32" where float32 products are allowed to be that
    flops: float
    moved_bytes: float


class CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside it every operator on the device is counted, also those of the backward pass."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[OpCost] = []
        self._device_type = device_type

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # it calls the operators on this rank's part, and those are counted
        out = func(*args, **(kwargs or {}))
        if func.namespace not in _NOT_COMPUTING:
            self._count(func, args, dict(kwargs or {}), out)
        return out

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        read = [each for each in _tensors((args, kwargs)) if each.device.type == self._device_type]
        written = [each for each in _tensors(out) if each.device.type == self._device_type]
        if not read and not written:
            return
        name = func._schema.name.split("::")[-1]
        flops = _count_flops(func, args, kwargs, out)
        moved_bytes = 0.0 if name in _NO_TRAFFIC or _is_view(func) else _traffic_bytes(func, name, args, kwargs, read, written)
        if flops or moved_bytes:
            self.calls.append(OpCost(name, _format((read or written)[0].dtype, name), flops, moved_bytes))


def summarise_costs(calls: list[OpCost], speed: MachineSpeed | None) -> Costs | None:
    """The step's sums, and its roofline (Williams et al., CACM 52(4), 2009) call by call: a call takes its operations at the product's rate
    or its bytes at the copy's, whichever is longer. None where nothing was counted.
    """
    if not calls:
        return None
    flops: dict[str, float] = {}
    for call in calls:
        if call.flops:
            flops[call.format] = flops.get(call.format, 0.0) + call.flops
    memory_s = computing_s = 0.0
    if speed is not None:
        for call in calls:
            times_s = call.flops / speed.matmul_flops_per_s, call.moved_bytes / speed.copy_bytes_per_s
            if times_s[1] > times_s[0]:
                memory_s += times_s[1]
            else:
                computing_s += times_s[0]
    roofline_s = memory_s + computing_s
    return Costs(
        flops=flops,
        moved_bytes=sum(call.moved_bytes for call in calls),
        memory_share=memory_s / roofline_s if roofline_s > 0 else None,
        roofline_s=roofline_s if roofline_s > 0 else None,
    )


def main_format(calls: list[OpCost]) -> str:
    """The format of most operations; fp32 where there are none."""
    flops: dict[str, float] = {}
    for call in calls:
        flops[call.format] = flops.get(call.format, 0.0) + call.flops
    return max(flops, key=lambda name: flops[name]) if any(flops.values()) else "fp32"


def _count_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    packet = func._overloadpacket
    if packet == torch.ops.aten.convolution_backward:
        return _count_convolution_backward(args)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    name = func._schema.name.split("::")[-1]
    if name == _CPU_ATTENTION:
        return float(sdpa_flop_count(*(each.shape for each in args[:3])))  # type: ignore[no-untyped-call]
    if name == f"{_CPU_ATTENTION}_backward":
        return float(sdpa_backward_flop_count(*(each.shape for each in args[:4])))  # type: ignore[no-untyped-call]
    return 0.0


def _count_convolution_backward(args: tuple[Any, ...]) -> float:
    """As many as the forward pass for each of the gradients that are asked for, of the input and of the weight.

    torch's own formula, as of 2.13, counts the weight's gradient of a depthwise convolution as that of a full one.
    """
    grad_output, inputs, weight, is_transposed, mask = args[0], args[1], args[2], args[7], args[10]
    forward = conv_flop_count(inputs.shape, weight.shape, grad_output.shape, transposed=is_transposed)
    return float(forward * sum(mask[:2]))


def _traffic_bytes(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], read: list[Tensor], written: list[Tensor]) -> float:
    """Inputs read once and outputs written once; what is changed in place is both."""
    changed = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed += _tensors(value)
    changed += _tensors([kwargs[each.name] for each in func._schema.arguments if each.name in kwargs and _is_written(each)])
    known = {id(each) for each in changed}
    created = [each for each in written if id(each) not in known]
    sources = [each for each in read if id(each) not in known] if name in _WRITE_ONLY else read
    return float(sum(map(_num_bytes, [*sources, *changed, *created])))


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def _tensors(tree: Any) -> list[Tensor]:
    return list(_plain_tensors(tree))


def _plain_tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf


def _num_bytes(tensor: Tensor) -> int:
    """Of the elements in memory: an expanded dimension holds one."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride != 0 else min(size, 1)
    return count * tensor.element_size()


def _format(dtype: torch.dtype, op_name: str) -> str:
    if "float8" in str(dtype):
        return "fp8"
    if dtype == torch.float32 and torch.cuda.is_available():
        return "tf32" if _allows_tf32("conv" in op_name) and torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    return _FORMATS.get(dtype, str(dtype).removeprefix("torch."))


def _allows_tf32(is_convolution: bool) -> bool:
    try:
        return torch.backends.cudnn.allow_tf32 if is_convolution else torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # the program set torch's newer switches, after which the older ones are not to be read
        switch = torch.backends.cudnn.conv if is_convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
        return bool(switch.fp32_precision == "tf32")
