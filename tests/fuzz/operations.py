"""The compiled operations with arguments of every kind, made from bytes.

They compute, or refuse with a Python exception; memory beside a tensor stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpualloc import _native

_REFUSALS = (TypeError, ValueError, RuntimeError)  # the last one by torch, for tensors that it does not hand on
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.complex64, torch.bool)
_MARGIN = 64  # elements before and behind each tensor
_LARGEST = 2**63 - 1
_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 255, 256, 272, 2**16, 2**31, 2**32 - 1, 2**60, 2**62, _LARGEST, -1, -2, -(2**63))
_SCALES = (1.0, 0.5, 0.0, -1.0, 1e300, 1e-300, float("inf"), float("nan"))


class Choices:
    """Decisions, one byte each; 0 when the bytes are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    def below(self, count: int) -> int:
        byte = self._data[self._next] if self._next < len(self._data) else 0
        self._next += 1
        return byte % count

    def of(self, options: Any) -> Any:
        return options[self.below(len(options))]


class Arena:
    """Tensors inside larger memory, which is looked at when the operation is over."""

    def __init__(self, choices: Choices, *, may_be_freed: bool = True) -> None:
        self._choices, self._may_be_freed, self._memory = choices, may_be_freed, list[tuple[Tensor, int]]()

    def tensor(self, numel: int, dtype: torch.dtype, *, offset: int = 0) -> Tensor:
        whole = torch.full((numel + 2 * _MARGIN + offset,), 1, dtype=dtype)
        self._memory.append((whole, numel))
        return whole[_MARGIN + offset : _MARGIN + offset + numel]

    def any_tensor(self, dtype: torch.dtype | None = None, numel: int | None = None) -> Tensor:
        """Mostly what is asked for; sometimes of another type, size, layout, device or kind."""
        choices = self._choices
        kind = choices.of(_DTYPES) if dtype is None or choices.below(16) == 15 else dtype
        count = choices.below(300) if numel is None else numel
        if choices.below(16) == 15:
            count = max(0, count + choices.of((-1, 1, 16)))
        plain = self.tensor(count, kind, offset=choices.below(5))
        layout = choices.below(24)
        if layout == 12 and not self._may_be_freed:
            return plain
        if layout == 1 and count % 2 == 0:
            return plain.view(2, count // 2).t()
        if layout == 2 and count % 8 == 0:
            return plain.view(1, 2, 2, count // 4).contiguous(memory_format=torch.channels_last)
        if layout == 3:
            return plain[::2]
        if layout == 4 and count > 0:
            return plain[:1].expand(count)
        if layout == 5:
            return plain.to("meta")
        if layout == 6:
            return plain.view(count, 1, 1)
        if layout == 7:
            return plain[:1].reshape(()) if count else plain
        return _odd_kind(layout, plain)

    def is_untouched(self) -> bool:
        return all(torch.equal(_beside(whole, numel), torch.ones_like(_beside(whole, numel))) for whole, numel in self._memory)


def _beside(whole: Tensor, numel: int) -> Tensor:
    front = whole.numel() - numel - _MARGIN
    return torch.cat([whole[:front], whole[front + numel :]])


def _odd_kind(layout: int, plain: Tensor) -> Tensor:
    """Tensors that are more or less than their memory."""
    if layout == 8 and plain.is_floating_point():
        return torch._neg_view(plain)
    if layout == 9:
        return torch._efficientzerotensor(plain.shape, dtype=plain.dtype)
    if layout == 10:
        return plain.to_sparse()
    if layout == 11 and plain.is_floating_point():
        return plain.detach().requires_grad_()
    if layout == 12:
        freed = plain.clone()
        freed.untyped_storage().resize_(0)
        return freed
    if layout == 13 and plain.dtype == torch.float32:
        return plain.to_mkldnn()
    return plain


def pack_and_unpack(data: bytes) -> bool:
    """gpualloc.ops and torch.ops.gpualloc. Returns whether the arguments were taken."""
    from gpualloc import ops

    choices = Choices(data)
    arena = Arena(choices)
    tensors = [arena.any_tensor(choices.of(_DTYPES[:4])) for _ in range(choices.below(6))]
    flat = arena.any_tensor(choices.of((torch.float16, torch.bfloat16)), sum(tensor.numel() for tensor in tensors))
    scale = choices.of(_SCALES)
    nonfinite = arena.any_tensor(torch.int64, 1) if choices.below(2) else None
    sumsq = arena.any_tensor(torch.float64, 1) if choices.below(2) else None
    call = choices.below(5)
    compiled = torch.ops.gpualloc
    calls: list[Callable[[], object]] = [
        lambda: ops.pack(tensors, flat, scale, nonfinite=nonfinite),
        lambda: ops.unpack(flat, tensors, scale, sumsq=sumsq, nonfinite=nonfinite),
        lambda: compiled.pack(tensors, flat, scale, nonfinite=nonfinite),
        lambda: compiled.unpack(flat, tensors, scale, sumsq=sumsq, nonfinite=nonfinite),
        lambda: compiled.pack_flat(tensors[0] if tensors else flat, flat, scale, nonfinite=nonfinite),
    ]
    return _is_taken(calls[call], arena)


def exchange(data: bytes) -> bool:
    """The operations of the 8-bit and 16-bit exchange. Returns whether the arguments were taken."""
    module: Any = _native.module()
    choices = Choices(data)
    arena = Arena(choices)
    world_size = choices.of(_INTEGERS) if choices.below(3) == 2 else 1 + choices.below(5)
    numel = choices.below(256) * choices.of((1, 3, 16))
    scale = choices.of(_SCALES)
    half = choices.of((torch.float16, torch.bfloat16))
    shard_bytes = module.int8_shard_bytes(module.shard_numel(numel, min(max(world_size, 1), 8)))
    wire_bytes = 0 if choices.below(16) == 15 else shard_bytes * min(max(world_size, 1), 8)
    wire = _aligned(arena.any_tensor(torch.uint8, wire_bytes + 16), wire_bytes)
    source = arena.any_tensor(torch.float32, numel)
    feedback = arena.any_tensor(torch.float32, numel) if choices.below(2) else None
    sumsq = arena.any_tensor(torch.float64, 1) if choices.below(2) else None
    nonfinite = arena.any_tensor(torch.int64, 1) if choices.below(2) else None
    narrow, shards = arena.any_tensor(half, numel), arena.any_tensor(half, numel * (1 + choices.below(4)))
    one_shard = _aligned(arena.any_tensor(torch.uint8, shard_bytes + 16), shard_bytes)
    calls: list[Callable[[], object]] = [
        lambda: module.quantize(source, wire, world_size, scale, feedback),
        lambda: module.dequantize(wire, source, world_size, sumsq, nonfinite),
        lambda: module.reduce_int8(wire, one_shard, world_size, feedback),
        lambda: module.sum_shards(shards, narrow, feedback),
        lambda: module.pack_with_feedback(source, narrow, scale, source if feedback is None else feedback),
        lambda: module.int8_shard_bytes(module.shard_numel(choices.of(_INTEGERS), choices.of(_INTEGERS))),
        lambda: module.int8_shard_bytes(choices.of(_INTEGERS)),
    ]
    return _is_taken(calls[choices.below(len(calls))], arena)


def _aligned(tensor: Tensor, numel: int) -> Tensor:
    """A part of it at a multiple of 16 bytes, where it is plain memory."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_contiguous() or tensor.dim() != 1 or not tensor.data_ptr():
        return tensor
    skip = -tensor.data_ptr() % 16 // tensor.element_size()
    return tensor[skip : skip + numel]


def virtual_group(data: bytes) -> bool:
    """Collectives of a rehearsal's group with shapes that may not fit. Returns whether the arguments were taken."""
    import torch.distributed.distributed_c10d as dist

    module: Any = _native.module()
    module.set_links_take_time(take_time=False)
    choices = Choices(data)
    arena = Arena(choices, may_be_freed=False)  # torch's own copies crash on these
    size = 1 + choices.below(4)
    cost = [(1.0, 1e-5, 1e-6, 1.0, 0.0)]
    names = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all", "gather", "scatter", "point_to_point")
    group = module.make_virtual_group(
        rank=choices.below(size),
        size=size,
        stands_for="gloo",
        costs=dict.fromkeys(names[: len(names) - choices.below(2)], cost),
        uses_network=False,
        peer_on_network=[False] * size,
        max_in_flight=1 + choices.below(2),
    )
    numel, dtype = choices.below(64), choices.of(_DTYPES)
    one = arena.any_tensor(dtype, numel)
    all_ranks = arena.any_tensor(dtype, numel * size)
    each = [arena.any_tensor(dtype, numel) for _ in range(size + choices.of((0, 0, 0, 1)))]
    peer, splits = choices.below(6) - 1, [choices.below(9) - 1 for _ in range(choices.of((0, size, size + 1)))]
    reduce = dist.AllreduceOptions()
    reduce.reduceOp = choices.of((dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.BXOR, dist.ReduceOp.AVG, dist.ReduceOp.MAX))
    calls: list[Callable[[], Any]] = [
        lambda: group.allreduce([one], reduce),
        lambda: group.broadcast([one], dist.BroadcastOptions()),
        lambda: group.allgather([each], [one], dist.AllgatherOptions()),
        lambda: group._allgather_base(all_ranks, one, dist.AllgatherOptions()),
        lambda: group.reduce_scatter([one], [each], dist.ReduceScatterOptions()),
        lambda: group._reduce_scatter_base(one, all_ranks, dist.ReduceScatterOptions()),
        lambda: group.alltoall_base(all_ranks, all_ranks.clone(), splits, splits[::-1], dist.AllToAllOptions()),
        lambda: group.alltoall(each, [part.clone() for part in each], dist.AllToAllOptions()),
        lambda: group.gather([each] if choices.below(2) else [], [one], dist.GatherOptions()),
        lambda: group.scatter([one], [each] if choices.below(2) else [], dist.ScatterOptions()),
        lambda: group.send([one], peer, 3),
        lambda: (group.send([all_ranks], peer, 3), group.recv([one], peer, 3))[1],
        lambda: group.recv([one], peer, 3),
        lambda: group.barrier(dist.BarrierOptions()),
        lambda: group.allreduce([], reduce),
        lambda: group.allreduce_coalesced(each, dist.AllreduceCoalescedOptions()),
        lambda: group.allgather_coalesced([each[: choices.below(3)]] * size, each[: choices.below(3)], dist.AllgatherOptions()),
    ]
    call = choices.of(calls)
    try:
        return _is_taken(lambda: call().wait(), arena)
    finally:
        module.set_links_take_time(take_time=True)


def _is_taken(call: Callable[[], object], arena: Arena) -> bool:
    refusal = ""
    try:
        call()
    except _REFUSALS as error:
        refusal = str(error) or type(error).__name__
    assert "INTERNAL ASSERT" not in refusal, refusal
    assert arena.is_untouched(), f"memory beside a tensor was written to ({refusal or 'not refused'})"
    return not refusal


OPERATIONS: dict[str, Callable[[bytes], bool]] = {
    "pack_and_unpack": pack_and_unpack,
    "exchange": exchange,
    "virtual_group": virtual_group,
}
