"""What is counted of operators whose costs are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpualloc.profiling.costs import CostCounter, OpCost, main_format, summarise_costs
from gpualloc.profiling.records import MachineSpeed

SPEED = MachineSpeed(matmul_flops_per_s=100.0, matmul_format="fp32", copy_bytes_per_s=10.0)


def count(function: object) -> CostCounter:
    with CostCounter("cpu") as counter:
        function()  # type: ignore[operator]
    return counter


def total_flops(counter: CostCounter) -> float:
    return sum(call.flops for call in counter.calls)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float64, "fp64")])
def test_a_linear_layer_costs_three_products(dtype: torch.dtype, name: str) -> None:
    layer, x = torch.nn.Linear(8, 16, dtype=dtype), torch.randn(32, 8, dtype=dtype, requires_grad=True)
    counter = count(lambda: layer(x).sum().backward())
    assert total_flops(counter) == 3 * 2 * 32 * 8 * 16
    assert {call.format for call in counter.calls if call.flops} == {name}
    assert main_format(counter.calls) == name


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolutions_gradients_cost_as_much_as_itself_each(groups: int) -> None:
    layer, x = torch.nn.Conv2d(8, 16, 3, groups=groups, bias=False), torch.randn(2, 8, 6, 6)
    forward = 2 * 2 * 16 * (8 // groups) * 9 * 4 * 4  # images, channels, taps, places
    assert total_flops(count(lambda: layer(x))) == forward
    assert total_flops(count(lambda: layer(x).sum().backward())) == 2 * forward  # no gradient of x
    x.requires_grad_()
    assert total_flops(count(lambda: layer(x).sum().backward())) == 3 * forward


def test_attention_is_counted_on_a_cpu() -> None:
    q = torch.randn(2, 4, 16, 8, requires_grad=True)
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert total_flops(count(lambda: F.scaled_dot_product_attention(q, q, q))) == 2 * product
    assert total_flops(count(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())) == pytest.approx((2 + 5) * product)


def moved(function: object) -> float:
    return sum(call.moved_bytes for call in count(function).calls)


def test_bytes_are_inputs_and_outputs_once() -> None:
    a, b = torch.ones(100), torch.ones(100)
    assert moved(lambda: a + b) == 3 * 400
    assert moved(lambda: a.add_(b)) == 3 * 400  # a is read and written
    assert moved(lambda: a.copy_(b)) == 2 * 400
    assert moved(lambda: a.zero_()) == 400
    assert moved(lambda: torch._foreach_add_([a, b], 1.0)) == 4 * 400
    assert moved(lambda: a.view(10, 10).t()) == 0
    assert moved(lambda: torch.empty(1000)) == 0
    assert moved(lambda: torch.ones(1).expand(100) + a) == pytest.approx(4 + 2 * 400 + 4 + 4, abs=8)  # and ones() itself


def test_operators_of_other_devices_are_not_counted() -> None:
    with CostCounter("cuda") as counter:
        torch.ones(4) + 1
    assert counter.calls == []


def test_the_roofline_is_call_by_call() -> None:
    calls = [
        OpCost("mm", "bf16", flops=600.0, moved_bytes=10.0),  # 6 s of products
        OpCost("add", "fp32", flops=0.0, moved_bytes=20.0),  # 2 s of bytes
        OpCost("mm", "bf16", flops=10.0, moved_bytes=20.0),  # 2 s of bytes: a product of vectors
    ]
    costs = summarise_costs(calls, SPEED)
    assert costs is not None
    assert (costs.flops, costs.moved_bytes, costs.total_flops) == ({"bf16": 610.0}, 50.0, 610.0)
    assert (costs.memory_share, costs.roofline_s) == (pytest.approx(4 / 10), pytest.approx(10))
    assert summarise_costs([], SPEED) is None
    unmeasured = summarise_costs(calls, None)
    assert unmeasured is not None
    assert unmeasured.memory_share is unmeasured.roofline_s is None
    assert main_format(calls[1:2]) == "fp32"
