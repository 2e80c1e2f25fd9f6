"""The compiled operations with any arguments: a result or a refusal, and no byte beside the tensors touched."""

from __future__ import annotations

import os
import random

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


@pytest.mark.parametrize("make", [freed, shrunk, lambda: torch._efficientzerotensor(8)], ids=["freed", "shrunk", "zero"])
def test_a_tensor_without_its_memory_is_refused(make: object) -> None:
    """These ended the process."""
    tensor = make()  # type: ignore[operator]
    with pytest.raises(ValueError, match="tensors: expected memory of 32 bytes"):
        ops.pack([tensor], torch.empty(8, dtype=torch.half))
    with pytest.raises(ValueError, match="tensors: expected memory of 32 bytes"):
        ops.unpack(torch.ones(8, dtype=torch.half), [tensor])
    with pytest.raises(ValueError, match="residual: expected memory of 32 bytes"):
        _native.module().pack_with_feedback(torch.ones(8), torch.empty(8, dtype=torch.half), 1.0, tensor)


def test_a_negative_view_is_refused() -> None:
    """Its memory holds the numbers with the other sign, which were sent."""
    with pytest.raises(ValueError, match=r"pass tensor.resolve_neg\(\)"):
        ops.pack([torch._neg_view(torch.ones(8))], torch.empty(8, dtype=torch.half))


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
