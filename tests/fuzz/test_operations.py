"""The compiled operations with any arguments: a result or a refusal, and no byte beside the tensors touched."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc import _native, ops
from tests.fuzz.operations import OPERATIONS

MANY = int(os.environ.get("GPUALLOC_FUZZ_EXAMPLES", "0"))  # of each target; 0: a few


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_arguments_compute_or_are_refused(name: str) -> None:
    taken = [OPERATIONS[name](random.Random(seed).randbytes(60)) for seed in range(100)]
    assert 10 < sum(taken) < 90, "both are tried"

    @settings(max_examples=MANY or 50, deadline=None, derandomize=not MANY)
    @given(data=st.binary(min_size=20, max_size=60))
    def holds(data: bytes) -> None:
        OPERATIONS[name](data)

    holds()


def freed() -> torch.Tensor:
    """As FSDP leaves a parameter between its layers' turns."""
    tensor = torch.ones(8)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk() -> torch.Tensor:
    tensor = torch.ones(8)
    tensor.untyped_storage().resize_(16)
    return tensor


def zeros(numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As forward-mode derivatives that are 0: without memory."""
    return torch._efficientzerotensor(numel, dtype=dtype)


def negative(numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A view whose memory holds the numbers with the other sign."""
    return torch._neg_view(torch.ones(numel, dtype=dtype))


NO_MEMORY, NO_BYTES = "expected a tensor with memory, got one of zeros", "expected memory of 32 bytes"
NEGATIVE = r"pass tensor.resolve_neg\(\)"


@pytest.mark.parametrize(
    ("make", "why"),
    [(freed, NO_BYTES), (shrunk, NO_BYTES), (partial(zeros, 8), NO_MEMORY), (partial(negative, 8), NEGATIVE)],
    ids=["freed", "shrunk", "zeros", "negative"],
)
def test_a_tensor_that_is_not_its_memory_is_refused(make: Callable[[], torch.Tensor], why: str) -> None:
    """The first three ended the process; of the fourth the wrong sign was sent."""
    tensor = make()
    with pytest.raises(ValueError, match=f"tensors: .*{why}"):
        ops.pack([tensor], torch.empty(8, dtype=torch.half))
    with pytest.raises(ValueError, match=f"tensors: .*{why}"):
        ops.unpack(torch.ones(8, dtype=torch.half), [tensor])
    with pytest.raises(ValueError, match=f"residual: .*{why}"):
        _native.module().pack_with_feedback(torch.ones(8), torch.empty(8, dtype=torch.half), 1.0, tensor)


@pytest.mark.parametrize(("make", "why"), [(zeros, NO_MEMORY), (negative, NEGATIVE)])
def test_views_are_refused_by_the_dispatched_operations_as_any_argument(make: Callable[..., torch.Tensor], why: str) -> None:
    """Torch's fallback for negative views wrote beside its stack where an operation changes one and returns nothing."""
    _native.module()
    compiled, plain, half = torch.ops.gpualloc, torch.ones(8), torch.ones(8, dtype=torch.half)
    for name, call in {
        "tensors": [
            lambda: compiled.pack([make(8)], half),
            lambda: compiled.pack_flat(make(8), half),
            lambda: compiled.unpack(half, [plain[:0], make(8)]),
            lambda: compiled.unpack_flat(half, make(8)),
        ],
        "out": [lambda: compiled.pack([plain], make(8, torch.half)), lambda: compiled.pack_flat(plain, make(8, torch.half))],
        "flat": [lambda: compiled.unpack(make(8, torch.half), [plain]), lambda: compiled.unpack_flat(make(8, torch.half), plain)],
        "nonfinite": [
            lambda: compiled.pack([plain], half, nonfinite=make(1, torch.int64)),
            lambda: compiled.unpack(half, [plain], nonfinite=make(1, torch.int64)),
        ],
        "sumsq": [lambda: compiled.unpack_flat(half, plain, sumsq=make(1, torch.float64))],
    }.items():
        for refused in call:
            with pytest.raises(ValueError, match=f"{name}: .*{why}"):
                refused()


def test_sizes_whose_product_does_not_fit_64_bits_are_refused() -> None:
    module = _native.module()
    source, nothing = torch.ones(5), torch.empty(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match="world_size: expected 1048576 or less"):
        module.quantize(source, nothing, 2**60, 1.0)  # 2**60 shards of 1040 bytes: 0 bytes in 64 bits
    with pytest.raises(ValueError, match="numel: expected 0 to"):
        module.shard_numel(-1, 2)
    with pytest.raises(ValueError, match="shard_numel: expected 0 to"):
        module.int8_shard_bytes(2**63 - 1)


@pytest.mark.parametrize(
    ("changes", "words"), [({"rank": 2}, "rank 2 is not in a group of 2"), ({"max_in_flight": 0}, "1 or more collectives in flight")]
)
def test_a_virtual_group_that_cannot_be_is_refused(changes: dict[str, int], words: str) -> None:
    costs = {"all_reduce": [(1.0, 0.0, 0.0, 1.0, 0.0)]}
    given = {"rank": 0, "size": 2, "stands_for": "gloo", "uses_network": False, "peer_on_network": [False, False], "max_in_flight": 1}
    with pytest.raises(ValueError, match=words):
        _native.module().make_virtual_group(costs=costs, **{**given, **changes})
    with pytest.raises(ValueError, match="expected finite figures of at least 0"):
        _native.module().make_virtual_group(costs={"all_reduce": [(1.0, float("nan"), 0.0, 1.0, 0.0)]}, **given)
