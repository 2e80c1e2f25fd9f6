"""pack and unpack against a plain FP64 reference, on the CPU and (marker gpu) on CUDA.

What must come out is defined without tolerance: the FP32 product, rounded once. torch's own conversions round to nearest even,
so the reference is `(float32(x) * scale).to(dtype)`; the FP64 check below pins that reference itself.
"""

from __future__ import annotations

import pytest
import torch

from gpualloc import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WIRES = [torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_tensor(numel: int, dtype: torch.dtype, device: str, seed: int, special: bool = False) -> torch.Tensor:
    """[numel] over the magnitudes that FP16 can hold, below and above; `special` sprinkles inf and NaN."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-26, 17 if special else 4, (numel,), generator=generator)
    values = torch.randn(numel, generator=generator, dtype=torch.float64) * torch.exp2(exponent.double())
    if special and numel > 3:
        values[1], values[2], values[numel // 2] = float("inf"), float("nan"), 65520.0
    return values.to(dtype).to(device)


def memory_order(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def narrowed(tensors: list[torch.Tensor], scale: float, wire: torch.dtype) -> torch.Tensor:
    parts = [memory_order(tensor).float() * scale for tensor in tensors]
    return torch.cat(parts).to(wire) if parts else torch.empty(0, dtype=wire)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal everywhere, NaN where NaN is expected, and the sign of zero kept."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    finite = expected.isfinite()
    assert torch.equal(actual[finite].signbit(), expected[finite].signbit())


@pytest.mark.parametrize("wire", WIRES)
def test_reference_rounds_the_fp32_product_once_to_nearest(wire: torch.dtype) -> None:
    # Half an ulp of the wire format at the product's magnitude, in FP64: 2**-11 (FP16) or 2**-8 (BF16) of its power of two.
    x = random_tensor(20000, torch.float32, "cpu", seed=1)
    product = (x * 0.3).double()
    got = narrowed([x], 0.3, wire).double()
    bits, smallest = (11, 2.0**-25) if wire == torch.float16 else (8, 2.0**-134)
    half_ulp = torch.clamp(torch.exp2(torch.floor(torch.log2(product.abs()))) * 2.0**-bits, min=smallest)
    assert ((got - product).abs() <= half_ulp).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 4097, 100_003])
def test_pack_and_unpack_one_tensor(numel: int, dtype: torch.dtype, wire: torch.dtype, device: str) -> None:
    for offset in (0, 1, 3):  # an unaligned start, in the tensor and in the flat buffer
        tensor = random_tensor(numel + offset, dtype, device, seed=numel + offset, special=True)[offset:]
        flat = torch.full((numel + offset + 1,), 7.0, dtype=wire, device=device)
        nonfinite = torch.full((1,), 5, dtype=torch.int64, device=device)
        ops.pack([tensor], flat[offset:-1], 0.3, nonfinite=nonfinite)
        expected = narrowed([tensor], 0.3, wire)
        assert_same_bits(flat[offset:-1], expected)
        assert (flat[:offset] == 7).all()
        assert flat[-1] == 7
        assert nonfinite.item() == 5 + int(expected.isfinite().logical_not().sum())

        back = torch.full((numel + offset + 1,), 7.0, dtype=dtype, device=device)
        nonfinite.zero_()
        ops.unpack(flat[offset:-1], [back[offset:-1]], 3.0, nonfinite=nonfinite)
        widened = (expected.float() * 3.0).to(dtype)
        assert_same_bits(back[offset:-1], widened)
        assert (back[:offset] == 7).all()
        assert back[-1] == 7
        assert nonfinite.item() == int(widened.isfinite().logical_not().sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire", WIRES)
def test_lists_of_any_dtype_shape_and_layout(wire: torch.dtype, device: str) -> None:
    shapes = [(3, 5), (0,), (), (2, 3, 4, 5), (1,), (7, 3, 3, 3), (64, 33), (0, 4)]
    tensors = [
        random_tensor(int(torch.Size(shape).numel()), DTYPES[i % 4], device, seed=i).reshape(shape) for i, shape in enumerate(shapes)
    ]
    tensors[3] = tensors[3].contiguous(memory_format=torch.channels_last)
    tensors[5] = tensors[5].contiguous(memory_format=torch.channels_last)
    tensors.append(tensors[6].t())  # dense, in another order
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=wire, device=device)
    ops.pack(tensors, flat, 0.25)
    assert_same_bits(flat, narrowed(tensors, 0.25, wire))

    targets = [torch.full_like(tensor, 9) for tensor in tensors]
    ops.unpack(flat, targets, 4.0)
    for tensor, target in zip(tensors, targets, strict=True):
        assert target.stride() == tensor.stride()
        assert_same_bits(memory_order(target), (narrowed([tensor], 0.25, wire).float() * 4.0).to(tensor.dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [3, 158, 3000])
def test_many_tensors(count: int, device: str) -> None:
    tensors = [random_tensor(1 + (k * 37) % 400, torch.float32, device, seed=k) for k in range(count)]
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=torch.float16, device=device)
    ops.pack(tensors, flat, 1.0)
    assert_same_bits(flat, narrowed(tensors, 1.0, torch.float16))


@pytest.mark.parametrize("wire", WIRES)
def test_lists_that_are_stored_past_the_caches(wire: torch.dtype) -> None:
    # More than the 4 MiB of csrc/ops_cpu.cpp, and odd sizes, so that no tensor but the first starts at a cache line of `flat`.
    tensors = [random_tensor(numel, torch.float32, "cpu", seed=numel, special=True) for numel in (700_003, 5, 31, 1_500_007, 65_537)]
    expected = narrowed(tensors, 0.3, wire)
    flat, nonfinite = torch.empty_like(expected), torch.zeros(1, dtype=torch.int64)
    ops.pack(tensors, flat, 0.3, nonfinite=nonfinite)
    assert_same_bits(flat, expected)
    assert nonfinite.item() == int(expected.isfinite().logical_not().sum())
    storage = torch.empty(flat.numel() + 1)
    for offset in (0, 1):  # targets at a cache line, and not
        targets = list(storage[offset : flat.numel() + offset].split([tensor.numel() for tensor in tensors]))
        ops.unpack(flat, targets, 3.0)
        assert_same_bits(torch.cat(targets), flat.float() * 3.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("numel", [1, 4097, 1_000_003])
def test_sum_of_squares(numel: int, device: str) -> None:
    flat = random_tensor(numel, torch.float16, device, seed=3)
    target = torch.empty(numel, device=device)
    sumsq = torch.full((1,), 2.5, dtype=torch.float64, device=device)
    ops.unpack_flat(flat, target, 0.3, sumsq=sumsq)
    expected = 2.5 + target.double().square().sum().item()
    # Squares of one sign summed in FP32 in groups of at most 2048 before FP64: a relative error below 2048 * 2**-24.
    assert sumsq.item() == pytest.approx(expected, rel=2048 * 2.0**-24)
    again = torch.full_like(sumsq, 2.5)
    ops.unpack_flat(flat, target, 0.3, sumsq=again)
    assert torch.equal(sumsq, again)


def test_sum_of_squares_does_not_depend_on_the_number_of_threads() -> None:
    flat, target = random_tensor(500_001, torch.float16, "cpu", seed=4), torch.empty(500_001)
    threads, sums = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sums.append(torch.zeros(1, dtype=torch.float64))
            ops.unpack_flat(flat, target, sumsq=sums[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(sums[0], sums[1])


@pytest.mark.parametrize("device", DEVICES)
def test_100_million_elements(device: str) -> None:
    numel = 100_000_007
    buffer = torch.randn(1_000_003, device=device).repeat(100)[: numel - 300] if device == "cpu" else torch.randn(numel, device=device)
    flat = torch.empty(buffer.numel(), dtype=torch.float16, device=device)
    ops.pack_flat(buffer, flat, 0.5)
    assert torch.equal(flat, (buffer * 0.5).half())
    nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
    ops.unpack_flat(flat, buffer, 2.0, nonfinite=nonfinite)
    assert torch.equal(buffer, flat.float() * 2)
    assert nonfinite.item() == 0


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    numel = 2**31 + 1_000_001
    buffer = torch.randn(numel, device="cuda")
    flat = torch.empty(numel, dtype=torch.float16, device="cuda")
    ops.pack_flat(buffer, flat, 0.5)
    for begin in (0, 2**31 - 1000, numel - 5000):
        assert torch.equal(flat[begin : begin + 5000], (buffer[begin : begin + 5000] * 0.5).half())
    sumsq = torch.zeros(1, dtype=torch.float64, device="cuda")
    ops.unpack_flat(flat, buffer, 2.0, sumsq=sumsq)
    for begin in (0, 2**31 - 1000, numel - 5000):
        assert torch.equal(buffer[begin : begin + 5000], flat[begin : begin + 5000].float() * 2)
    assert sumsq.item() == pytest.approx(torch.stack([part.double().square().sum() for part in buffer.split(2**28)]).sum().item(), rel=1e-4)


@pytest.mark.gpu
def test_cuda_calls_neither_allocate_nor_synchronise_and_can_be_captured() -> None:
    tensors = [torch.randn(1000 + k, device="cuda") for k in range(200)]
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=torch.float16, device="cuda")
    nonfinite = torch.zeros(1, dtype=torch.int64, device="cuda")
    sumsq = torch.zeros(1, dtype=torch.float64, device="cuda")

    def call() -> None:
        ops.pack(tensors, flat, 0.5, nonfinite=nonfinite)
        ops.unpack(flat, tensors, 2.0, sumsq=sumsq, nonfinite=nonfinite)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    for tensor in tensors:
        tensor.fill_(3.0)
    sumsq.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(flat, torch.full_like(flat, 1.5))
    assert sumsq.item() == pytest.approx(9.0 * flat.numel(), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    tensors = [torch.randn(5, 3, device=device), torch.randn(7, device=device, dtype=torch.float64)]
    flat = torch.empty(22, dtype=torch.float16, device=device)
    nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
    sumsq = torch.zeros(1, dtype=torch.float64, device=device)
    namespace = torch.ops.gpualloc
    torch.library.opcheck(namespace.pack.default, (tensors, flat, 0.5), {"nonfinite": nonfinite})
    torch.library.opcheck(namespace.pack.default, (tensors, flat))
    torch.library.opcheck(namespace.unpack.default, (flat, tensors, 2.0), {"sumsq": sumsq, "nonfinite": nonfinite})
    torch.library.opcheck(namespace.unpack.default, (flat, tensors))
    torch.library.opcheck(namespace.pack_flat.default, (tensors[0], flat[:15], 0.5), {"nonfinite": nonfinite})
    torch.library.opcheck(namespace.unpack_flat.default, (flat[:15], tensors[0], 2.0), {"sumsq": sumsq})


def test_traced_by_torch_compile() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def round_trip(x: torch.Tensor) -> torch.Tensor:
        flat = torch.empty(x.numel(), dtype=torch.float16)
        ops.pack([x], flat, 0.5)
        back = torch.empty_like(x)
        ops.unpack(flat, [back], 2.0)
        return back + 1

    x = torch.randn(10, 3)
    assert torch.equal(round_trip(x), (x * 0.5).half().float() * 2 + 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.pack([torch.zeros(3, dtype=torch.int32)], torch.zeros(3).half()), TypeError, "tensors: expected float32.*got Int"),
        (lambda: ops.pack([torch.zeros(3)], torch.zeros(3)), TypeError, "out: expected float16 or bfloat16, got Float"),
        (lambda: ops.pack([torch.zeros(3)], torch.zeros(4).half()), ValueError, "flat: expected 3 elements.*got 4"),
        (
            lambda: ops.pack([torch.zeros(4, 4)[:, :2]], torch.zeros(8).half()),
            ValueError,
            r"tensors\[0\]: expected dense memory.*contiguous\(\)",
        ),
        (lambda: ops.pack([torch.zeros(3).expand(2, 3)], torch.zeros(6).half()), ValueError, r"tensors\[0\]: expected dense memory"),
        (lambda: ops.pack([torch.zeros(6)], torch.zeros(2, 3).half()), ValueError, "out: expected a contiguous 1-D tensor"),
        (lambda: ops.pack([torch.zeros(3)], torch.zeros(6).half()[::2]), ValueError, "out: expected a contiguous 1-D tensor"),
        (lambda: ops.pack([torch.zeros(1)], torch.zeros(1).half(), nonfinite=torch.zeros(1)), TypeError, "nonfinite: expected Long"),
        (lambda: ops.unpack(torch.zeros(1).half(), [torch.zeros(1)], sumsq=torch.zeros(1)), TypeError, "sumsq: expected Double"),
        (
            lambda: ops.unpack(torch.zeros(1).half(), [torch.zeros(1)], sumsq=torch.zeros(2).double()),
            ValueError,
            "sumsq: expected 1 contiguous element",
        ),
        (lambda: ops.unpack(torch.zeros(3), [torch.zeros(3)]), TypeError, "flat: expected float16 or bfloat16"),
    ],
)
def test_wrong_arguments_are_named(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
def test_tensors_on_another_device_are_named() -> None:
    with pytest.raises(ValueError, match=r"tensors\[0\]: expected on cuda:0 like the flat buffer, got cpu"):
        ops.pack([torch.zeros(3)], torch.zeros(3, device="cuda").half())
