"""The compiled steps of the gradient exchange, against the same formulas in torch's own operations and against what they promise.

No tolerance where a formula fixes every bit: torch's FP32 operations and conversions round to nearest even, one by one. What a
rounding may cost is derived beside each bound.
"""

from __future__ import annotations

import pytest
import torch

from gpualloc import _native

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALVES = [torch.float16, torch.bfloat16]
NUMELS = [1, 255, 256, 257, 1024, 1025, 50_003]
LARGEST_SCALE = 8454659 * 2.0**98  # of which 127 are below FP32's largest number, 2**128 - 2**104

native = _native.module()


def random_gradients(numel: int, device: str, seed: int) -> torch.Tensor:
    """[numel] FP32 whose magnitude changes from block to block."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-20, 4, (numel // 256 + 1,), generator=generator).repeat_interleave(256)[:numel]
    return (torch.randn(numel, generator=generator) * torch.exp2(exponent.float())).to(device)


def empty_wire(numel: int, world_size: int, device: str) -> torch.Tensor:
    """Poisoned, so that what is not written shows."""
    num_bytes = world_size * native.int8_shard_bytes(native.shard_numel(numel, world_size))
    return torch.full((num_bytes,), 0x5A, dtype=torch.uint8, device=device)


def parts_of(wire: torch.Tensor, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[blocks, 256] values as FP32, and [blocks, 1] scales, of all shards."""
    shards = wire.view(world_size, -1)
    num_values = shards.shape[1] // 260 * 256
    values = shards[:, :num_values].reshape(-1, 256).view(torch.int8).float()
    return values, shards[:, num_values:].contiguous().view(torch.float32).reshape(-1, 1)


def blocks_of(flat: torch.Tensor, world_size: int) -> torch.Tensor:
    """[blocks, 256], zeros after the end."""
    padded = flat.new_zeros(world_size * native.shard_numel(flat.numel(), world_size))
    padded[: flat.numel()] = flat
    return padded.view(-1, 256)


def quantized(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values and scales that the blocks v [blocks, 256] must get."""
    # By a tensor of 127s: torch divides a CUDA tensor by a number as a product with its inverse.
    absmax = v.abs().amax(dim=1, keepdim=True)
    scale = (absmax / torch.full_like(absmax, 127)).clamp(torch.finfo(torch.float32).tiny, LARGEST_SCALE)
    scale = torch.where(absmax == 0, 0, torch.where(absmax.isfinite(), scale, torch.nan))
    return torch.where(scale > 0, (v * (1 / scale)).round(), 0), scale


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("numel", NUMELS)
def test_a_bucket_through_all_steps_of_int8(numel: int, world_size: int, device: str) -> None:
    scale, per_shard = 1 / world_size, native.shard_numel(numel, world_size)
    wires, expected_sum = [], None
    for rank in range(world_size):
        source, residual = random_gradients(numel, device, rank), random_gradients(numel, device, 10 + rank)
        v = blocks_of(source * scale + residual, world_size)
        wire = empty_wire(numel, world_size, device)
        native.quantize(source, wire, world_size, scale, residual)
        values, scales = parts_of(wire, world_size)
        for got, expected in zip((values, scales), quantized(v), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        torch.testing.assert_close(residual, (v - values * scales).flatten()[:numel], rtol=0, atol=0)
        wires.append(wire)
        expected_sum = values * scales if expected_sum is None else expected_sum + values * scales

    owned = torch.empty_like(wires[0])  # what all owners send back
    size = native.int8_shard_bytes(per_shard)
    for owner in range(world_size):
        received = torch.cat([wire.view(world_size, size)[owner] for wire in wires])
        error = torch.zeros(per_shard, device=device)
        native.reduce_int8(received, owned.view(world_size, size)[owner], world_size, error)
        values, scales = parts_of(owned.view(world_size, size)[owner], 1)
        sums = expected_sum.view(world_size, -1)[owner].view(-1, 256)
        for got, expected in zip((values, scales), quantized(sums), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        torch.testing.assert_close(error, (sums - values * scales).flatten(), rtol=0, atol=0)

    target = torch.full((numel,), torch.nan, device=device)
    sumsq = torch.full((1,), 3.0, dtype=torch.float64, device=device)
    nonfinite = torch.full((1,), 5, device=device)
    native.dequantize(owned, target, world_size, sumsq, nonfinite)
    values, scales = parts_of(owned, world_size)
    torch.testing.assert_close(target, (values * scales).flatten()[:numel], rtol=0, atol=0)
    assert nonfinite.item() == 5
    # Squares are summed in FP32 over at most 256 of them: 256 roundings of 2**-24.
    torch.testing.assert_close(sumsq.item(), 3 + target.double().square().sum().item(), rtol=256 * 2.0**-24, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_int8_of_unusual_blocks(device: str) -> None:
    largest = torch.finfo(torch.float32).max
    v = torch.zeros(7, 256, device=device)
    v[1, 3], v[2, 5] = torch.inf, torch.nan
    v[3, :2] = torch.tensor([largest, -largest / 3])
    v[4, :3] = torch.tensor([2.0**-149, 2.0**-126, -(2.0**-128)])
    v[5, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # ties
    residual, wire, target = torch.zeros(7 * 256, device=device), empty_wire(7 * 256, 1, device), torch.empty(7 * 256, device=device)
    nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
    native.quantize(v.flatten(), wire, 1, 1.0, residual)
    native.dequantize(wire, target, 1, nonfinite=nonfinite)
    values, scales = parts_of(wire, 1)
    back, residual = target.view(7, 256), residual.view(7, 256)
    assert scales[0].item() == scales[6].item() == 0
    assert back[0].eq(0).all()
    assert back[1:3].isnan().all()
    assert nonfinite.item() == 2 * 256
    assert values[:3].eq(0).all()
    assert residual[:3].eq(0).all()
    # At most half a step off, though the scale was rounded down.
    assert (back[3, :2].double() - v[3, :2].double()).abs().max() <= largest / 127 / 2
    assert back[3].isfinite().all()
    assert scales[4].item() == 2.0**-126
    assert (back[4] + residual[4]).equal(v[4])  # nothing is lost, though less than half a step is not sent
    assert values[5, :4].tolist() == [127, 0, 2, -2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire_dtype", HALVES)
@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("numel", NUMELS)
def test_sum_shards(numel: int, world_size: int, wire_dtype: torch.dtype, device: str) -> None:
    shards = random_gradients(world_size * numel, device, 1).to(wire_dtype)
    shards[0] = torch.inf
    error = random_gradients(numel, device, 2) * 1e-3
    expected = shards[:numel].float()
    for rank in range(1, world_size):
        expected = expected + shards[rank * numel : (rank + 1) * numel].float()
    out = torch.full((numel,), torch.nan, dtype=wire_dtype, device=device)
    native.sum_shards(shards, out)
    torch.testing.assert_close(out, expected.to(wire_dtype), rtol=0, atol=0)
    expected = expected + error
    native.sum_shards(shards, out, error)
    torch.testing.assert_close(out, expected.to(wire_dtype), rtol=0, atol=0)
    torch.testing.assert_close(error, (expected - out.float()).nan_to_num(0, 0, 0), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire_dtype", HALVES)
@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("numel", NUMELS)
def test_pack_with_feedback(numel: int, begin: int, wire_dtype: torch.dtype, device: str) -> None:
    source = random_gradients(begin + numel, device, 1)[begin:]
    source[0] = 1e38
    residual = random_gradients(numel, device, 2)
    expected = source * 3.5 + residual
    wire = torch.full((numel,), torch.nan, dtype=wire_dtype, device=device)
    native.pack_with_feedback(source, wire, 3.5, residual)
    torch.testing.assert_close(wire, expected.to(wire_dtype), rtol=0, atol=0)
    torch.testing.assert_close(residual, (expected - wire.float()).nan_to_num(0, 0, 0), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire", ["int8", "fp16"])
def test_feedback_sends_in_the_end_what_single_steps_round_away(wire: str, device: str) -> None:
    steps, numel = 50, 1000
    gradients = random_gradients(numel, device, 1) + 1.0
    sent, residual, got = torch.zeros(numel, dtype=torch.float64, device=device), torch.zeros(numel, device=device), torch.empty(0)
    for _ in range(steps):
        if wire == "int8":
            packed, got = empty_wire(numel, 1, device), torch.empty(numel, device=device)
            native.quantize(gradients, packed, 1, 1.0, residual)
            native.dequantize(packed, got, 1)
        else:
            got = torch.empty(numel, dtype=torch.float16, device=device)
            native.pack_with_feedback(gradients, got, 1.0, residual)
        sent += got.double()
    # Each step adds gradient and residual in FP32: half an ulp of at most twice the largest gradient.
    rounding = steps * 2.0**-23 * gradients.abs().max().item()
    assert (sent + residual.double() - steps * gradients.double()).abs().max().item() <= rounding
    one_step = (got.double() - gradients.double()).abs().max().item()
    assert (sent / steps - gradients.double()).abs().max().item() < one_step


def test_bits_do_not_depend_on_threads_or_runs() -> None:
    numel, results = 1_000_003, []
    source = random_gradients(numel, "cpu", 1)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 1, 3):
            torch.set_num_threads(num_threads)
            wire, residual = empty_wire(numel, 2, "cpu"), torch.zeros(numel)
            target, sumsq = torch.empty(numel), torch.zeros(1, dtype=torch.float64)
            native.quantize(source, wire, 2, 0.5, residual)
            native.dequantize(wire, target, 2, sumsq)
            results.append((wire, residual, target, sumsq))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_nothing_to_send() -> None:
    empty, half, wire = torch.empty(0), torch.empty(0, dtype=torch.float16), torch.empty(0, dtype=torch.uint8)
    native.quantize(empty, wire, 4, 1.0, empty)
    native.reduce_int8(wire, wire, 4, empty)
    native.dequantize(wire, empty, 4)
    native.sum_shards(half, half, empty)
    native.pack_with_feedback(empty, half, 1.0, empty)


def test_refusals_name_argument_expectation_and_what_arrived() -> None:
    source, wire = torch.ones(100), empty_wire(100, 2, "cpu")
    half = torch.ones(100, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"wire: expected 2080 contiguous elements, got shape \[1040\]"):
        native.quantize(source, wire[:1040], 2, 1.0)
    with pytest.raises(ValueError, match="world_size: expected 1 or more, got 0"):
        native.quantize(source, wire, 0, 1.0)
    with pytest.raises(ValueError, match="world_size: expected 1 or more, got 0"):
        native.shard_numel(100, 0)
    with pytest.raises(TypeError, match="source: expected Float, got Half"):
        native.quantize(half, wire, 2, 1.0)
    with pytest.raises(ValueError, match="wire: expected memory at a multiple of 16 bytes, got storage offset 1"):
        native.quantize(source, torch.empty(2081, dtype=torch.uint8)[1:], 2, 1.0)
    with pytest.raises(ValueError, match="residual: expected 100 contiguous elements"):
        native.quantize(source, wire, 2, 1.0, torch.ones(99))
    with pytest.raises(ValueError, match=r"out: expected .* a multiple of 1040, got 1000"):
        native.reduce_int8(wire, torch.empty(1000, dtype=torch.uint8), 2)
    with pytest.raises(TypeError, match="sumsq: expected Double, got Float"):
        native.dequantize(wire, source, 2, torch.zeros(1))
    with pytest.raises(ValueError, match="shards: expected one or more shards of out's 99 elements, got 100"):
        native.sum_shards(half, half[:99])
    with pytest.raises(TypeError, match="wire: expected float16 or bfloat16, got Float"):
        native.pack_with_feedback(source, source, 1.0, source)
    with pytest.raises(NotImplementedError, match=r"gpualloc::quantize: .*got tensors on meta"):
        native.quantize(source.to("meta"), wire.to("meta"), 2, 1.0)
