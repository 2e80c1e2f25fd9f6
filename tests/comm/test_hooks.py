"""The hooks in real DDP on 2 to 4 gloo ranks.

Tolerance of a 16-bit wire over W ranks against the exact mean: every rank's g_i / W is rounded once, and the W - 1 sums once
each, every time by at most half an ulp, u = 2**-11 (FP16) or 2**-8 (BF16) of a number not larger than sum |g_i| / W. Below
FP16's normal range half an ulp is 2**-25.
"""

from __future__ import annotations

import pytest
import torch

from tests.comm import scenarios
from tests.ranks import run_ranks

UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def assert_ranks_equal(per_rank: list[list[torch.Tensor]]) -> None:
    for other in per_rank[1:]:
        for a, b in zip(per_rank[0], other, strict=True):
            assert torch.equal(a, b)


def error_bounds(world_size: int, step: int, wire: str) -> list[torch.Tensor]:
    per_rank = zip(*(scenarios.coefficients(rank, step) for rank in range(world_size)), strict=True)
    mean_magnitude = [torch.stack([c.double().abs() for c in one]).mean(0) for one in per_rank]
    return [world_size * (UNIT[wire] * magnitude + 2.0**-25) for magnitude in mean_magnitude]


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}, {"find_unused_parameters": True}])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_fp32_equals_stock_ddp_bit_for_bit(world_size: int, options: dict[str, bool]) -> None:
    stock = run_ranks(_gradients, world_size, "stock", options)
    hooked = run_ranks(_gradients, world_size, "fp32", options)
    for rank in range(world_size):
        for a, b in zip(stock[rank][0], hooked[rank][0], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _gradients(rank: int, world_size: int, hook: str, options: dict[str, bool], kwargs: dict[str, bool] | None = None):  # type: ignore[no-untyped-def]
    return scenarios.known_gradients(rank, world_size, "cpu", hook, options, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "kwargs"),
    [
        ({}, {}),
        ({"gradient_as_bucket_view": True}, {}),
        ({"gradient_as_bucket_view": True}, {"set_to_none": False}),
        ({"static_graph": True}, {}),
        ({"find_unused_parameters": True}, {"use_all": False}),
        ({"find_unused_parameters": True, "gradient_as_bucket_view": True}, {"use_all": False}),
        ({"gradient_as_bucket_view": True}, {"accumulate": True}),
        ({}, {"accumulate": True}),
    ],
)
@pytest.mark.parametrize("hook", ["fp16", "bf16"])
def test_averages_within_the_derived_tolerance_and_equal_on_all_ranks(hook: str, options: dict[str, bool], kwargs: dict[str, bool]) -> None:
    world_size = 2
    results = run_ranks(_gradients, world_size, hook, options, kwargs)
    factor = 2 if kwargs.get("accumulate") else 1
    for step in range(3):
        assert_ranks_equal([gradients[step] for gradients, _ in results])
        for got, exact, bound in zip(
            results[0][0][step], scenarios.exact_mean(world_size, step), error_bounds(world_size, step, hook), strict=True
        ):
            assert ((got.double() - factor * exact).abs() <= factor * bound).all()
            assert not torch.equal(got, (factor * exact).float())  # it did go through 16 bits


@pytest.mark.parametrize("world_size", [2, 4])
def test_fp16_agrees_with_torchs_hook(world_size: int) -> None:
    ours = run_ranks(_gradients, world_size, "fp16", {})
    torchs = run_ranks(_gradients, world_size, "torch_fp16", {})
    for step in range(3):
        bounds = error_bounds(world_size, step, "fp16")
        for a, b, bound in zip(ours[0][0][step], torchs[0][0][step], bounds, strict=True):
            assert ((a - b).double().abs() <= 2 * bound).all()  # each within one bound of the exact mean
        assert_ranks_equal([gradients[step] for gradients, _ in ours])


@pytest.mark.parametrize("wire", ["fp16", "bf16"])
def test_callable_hooks_give_the_same_bits(wire: str) -> None:
    compiled = run_ranks(_gradients, 2, wire, {})
    python = run_ranks(_gradients, 2, f"{wire}_callable", {})
    for step in range(3):
        assert_ranks_equal([compiled[0][0][step], python[0][0][step], python[1][0][step]])


@pytest.mark.parametrize("wire", ["fp32", "fp16", "bf16"])
def test_without_the_extension_the_same_bits_and_a_warning(wire: str) -> None:
    compiled = run_ranks(_gradients, 2, wire, {})
    python = run_ranks(_gradients_without_extension, 2, wire)
    for step in range(3):
        assert_ranks_equal([compiled[0][0][step], python[0][0][step], python[1][0][step]])
    counted = ("steps", "wire_bytes", "nonfinite_steps")  # not transfers: only the compiled hook joins small buckets
    assert {name: python[0][1][name] for name in counted} == {name: compiled[0][1][name] for name in counted}


def _gradients_without_extension(rank: int, world_size: int, hook: str):  # type: ignore[no-untyped-def]
    from gpualloc import _native

    _native._load = lambda: (None, "taken away by a test")  # type: ignore[assignment]
    with pytest.warns(RuntimeWarning, match="slower Python hooks: taken away by a test"):
        return _gradients(rank, world_size, hook, {})


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(("hook", "type_name", "width"), [("fp32", "float", 4), ("fp16", "c10::Half", 2), ("bf16", "c10::BFloat16", 2)])
def test_the_wire_has_the_dtype_and_the_bytes_it_says(hook: str, type_name: str, width: int, world_size: int) -> None:
    elements = sum(torch.Size(size).numel() for size in scenarios.SIZES) + 3
    for seen, stats in run_ranks(_wire, world_size, hook):
        assert {name for name, _ in seen} == {type_name}
        assert sum(count for _, count in seen) == elements
        assert stats == {"steps": 1, "transfers": len(seen), "wire_bytes": width * elements}
        assert len(seen) == 1 if width == 2 else len(seen) > 1  # small neighbours travel together where they are narrowed anyway


def _wire(rank: int, world_size: int, hook: str):  # type: ignore[no-untyped-def]
    return scenarios.wire_of_one_step(rank, world_size, "cpu", hook)


@pytest.mark.parametrize("hook", ["fp16", "bf16", "fp16_callable"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16, torch.float16])
def test_other_dtypes_pass_uncompressed(hook: str, dtype: torch.dtype) -> None:
    stock = run_ranks(_other_dtypes, 2, "stock", dtype)
    hooked = run_ranks(_other_dtypes, 2, hook, dtype)
    assert_ranks_equal([stock[0], *hooked])


def _other_dtypes(rank: int, world_size: int, hook: str, dtype: torch.dtype):  # type: ignore[no-untyped-def]
    return scenarios.other_dtypes(rank, world_size, "cpu", hook, dtype)


def test_grad_scaler_skips_the_step_on_every_rank() -> None:
    for result in run_ranks(_scaler, 2):
        weights = result["weights"]
        assert not torch.equal(weights[0], torch.ones_like(weights[0]))  # a step was taken
        assert torch.equal(weights[1], weights[0])  # the overflowing one was not
        assert not torch.equal(weights[2], weights[1])
        assert result["scale"] == 2.0
        assert result["nonfinite_steps"] == 1


def _scaler(rank: int, world_size: int):  # type: ignore[no-untyped-def]
    return scenarios.scaler_skips_overflow(rank, world_size, "cpu")


def test_training_stays_equal_across_ranks_and_close_to_stock() -> None:
    stock = run_ranks(_train, 2, "stock")
    for hook in ("fp16", "bf16"):
        trained = run_ranks(_train, 2, hook)
        assert_ranks_equal(trained)
        for a, b in zip(stock[0], trained[0], strict=True):
            assert (a - b).norm() <= 0.02 * a.norm() + 1e-3
            assert not torch.equal(a, b) or a.numel() < 10


def _train(rank: int, world_size: int, hook: str):  # type: ignore[no-untyped-def]
    return scenarios.train(rank, world_size, "cpu", hook)


def test_nonfinite_steps_are_counted_once_a_step_and_resumed() -> None:
    for result in run_ranks(_long_run, 2):
        assert result["saved"]["steps"] == 200
        assert result["saved"]["nonfinite_steps"] == 29  # steps 0, 7, ..., 196, on both ranks though only one met them
        assert result["resumed"] == result["saved"]


def _long_run(rank: int, world_size: int):  # type: ignore[no-untyped-def]
    return scenarios.long_run(rank, world_size, "cpu")


def test_scaling_comes_before_the_cast() -> None:
    # 1e5 is above FP16's 65504 but its mean with 0 is not: torch's hook, which casts first, gives inf.
    for gradient in run_ranks(_large_gradient, 2, "fp16"):
        assert gradient == 49984.0  # 50000 to the nearest FP16, spacing 32
    for gradient in run_ranks(_large_gradient, 2, "torch_fp16"):
        assert gradient == float("inf")


def _large_gradient(rank: int, world_size: int, hook: str) -> float:
    ddp = scenarios.wrap(torch.nn.Linear(1, 1, bias=False), "cpu")
    scenarios.HOOKS[hook](ddp)
    ddp(torch.full((1, 1), 1e5 if rank == 0 else 0.0)).sum().backward()
    return float(ddp.module.weight.grad.item())


def test_one_rank_and_a_subgroup() -> None:
    exact = scenarios.exact_mean(1, 0)
    (gradients, stats), *_ = run_ranks(_gradients, 1, "fp16", {})
    assert stats["steps"] == 3
    for got, want in zip(gradients[0], exact, strict=True):
        assert torch.equal(got, want.half().float())

    for rank, value in enumerate(run_ranks(_subgroup, 4)):
        assert value == (0.5 if rank < 2 else 2.5)  # the mean of ranks 0 and 1, and of 2 and 3


def _subgroup(rank: int, world_size: int) -> float:
    import torch.distributed as dist

    import gpualloc

    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    ddp = scenarios.wrap(torch.nn.Linear(1, 1, bias=False), "cpu", process_group=groups[rank // 2])
    gpualloc.register_comm_hook(ddp, wire="fp16")
    ddp(torch.full((1, 1), float(rank))).sum().backward()
    return float(ddp.module.weight.grad.item())


def test_refusals_say_what_to_do() -> None:
    run_ranks(_refusals, 1)


def _refusals(rank: int, world_size: int) -> None:
    import gpualloc
    from gpualloc.errors import GpuallocError, UsageError

    model = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"got Linear; wrap the model first: DistributedDataParallel\(model\)"):
        gpualloc.register_comm_hook(model)  # type: ignore[arg-type]
    ddp = scenarios.wrap(model, "cpu")
    with pytest.raises(UsageError, match="wire='fp99' is not one of auto, fp32, fp16, bf16, int8"):
        gpualloc.register_comm_hook(ddp, wire="fp99")
    handle = gpualloc.register_comm_hook(ddp, wire="fp16")
    with pytest.raises(GpuallocError, match="has a communication hook already"):
        gpualloc.register_comm_hook(ddp, wire="fp16")
    with pytest.raises(GpuallocError, match="saved with wire='bf16', this hook has wire='fp16'"):
        handle.load_state_dict({**handle.state_dict(), "wire": "bf16"})
    with pytest.raises(GpuallocError, match="version 99, this gpualloc reads up to 2"):
        handle.load_state_dict({"version": 99})
    with pytest.raises(GpuallocError, match="pass what state_dict"):
        handle.load_state_dict({"version": 1, "wire": "fp16"})
