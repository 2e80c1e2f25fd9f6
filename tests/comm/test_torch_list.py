"""The hooks held to torch's own cases: test_ddp_hooks.py, test_c10d_gloo.py, test_c10d_nccl.py and distributed_test.py.

Each run_ranks call takes all hooks through a case, in one process group. What is gpualloc's own is in
test_hooks.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.comm import torch_hook_scenarios as hook_scenarios
from tests.comm import torch_layout_scenarios as layout_scenarios
from tests.comm import torch_reducer_scenarios as reducer_scenarios
from tests.comm import torch_training_scenarios as training
from tests.comm.hook_table import EVERY_HOOK, NARROW, UNIT, WITH_HANDLE, whole, wire_of, with_each
from tests.ranks import run_ranks

PerHook = dict[str, list[Any]]  # of each hook what each rank returned


def per_hook(scenario: Callable[..., Any], *args: Any, hooks: Sequence[str] = EVERY_HOOK, world_size: int = 2) -> PerHook:
    """What each rank returned, for each hook."""
    results = run_ranks(with_each, world_size, "cpu", scenario, hooks, *args, timeout_s=60)
    return {hook: [result[hook] for result in results] for hook in hooks}


# test_ddp_hooks.py


def test_close_to_no_hook_in_torchs_own_numbers() -> None:
    assert_close_to_no_hook(per_hook(hook_scenarios.eight_and_its_square, hooks=("stock", *EVERY_HOOK)))


def assert_close_to_no_hook(grads: PerHook) -> None:
    # 8 / 800 and 64 / 800, mean 0.045: FP16 is off by at most W u m = 2 * 2**-11 * 0.045 = 4.4e-5, BF16 by 3.5e-4.
    atol = {"fp32": 0.0, "auto": 0.0, "fp16": 1e-4, "bf16": 8e-4, "int8": 2 * 0.08 / 254}
    torch.testing.assert_close(grads["stock"][0], torch.full((40, 20), 0.045), rtol=1e-6, atol=0)
    for hook, ranks in grads.items():
        if hook != "stock":
            for grad in ranks:
                torch.testing.assert_close(grad, grads["stock"][0], rtol=1e-5, atol=atol[wire_of(hook)])


def test_our_future_goes_on_into_the_users_and_only_the_last_bucket_is_last() -> None:
    assert_only_the_last_is_last(per_hook(hook_scenarios.chained_futures, hooks=("fp16_callable", "bf16_callable")))


def assert_only_the_last_is_last(seen_by_hook: PerHook) -> None:
    for ranks in seen_by_hook.values():
        for step, buckets in (numbered for seen in ranks for numbered in enumerate(seen)):
            assert len(buckets) == (5 if step else 1)  # the first step's bucket is of up to 1 MiB
            assert buckets == [(index, index == len(buckets) - 1) for index in range(len(buckets))]


def test_one_registration_whichever_hook_came_first() -> None:
    run_ranks(hook_scenarios.only_one_registration, 2, "cpu")


def test_bad_callables_and_annotations_are_refused() -> None:
    run_ranks(hook_scenarios.refused_callables, 2, "cpu")


def test_bad_return_values_are_errors() -> None:
    run_ranks(hook_scenarios.wrong_returns_around_ours, 2, "cpu")


# test_c10d_gloo.py, test_c10d_nccl.py


@pytest.mark.parametrize("grad_is_view", [False, True])
def test_sparse_gradients_are_averaged_as_they_are(grad_is_view: bool) -> None:
    per_hook(reducer_scenarios.sparse_gradients, grad_is_view, hooks=["stock", *EVERY_HOOK])


def test_sparse_gradients_in_the_stand_in() -> None:
    ranks = per_hook(reducer_scenarios.sparse_gradients, False, hooks=["fp16", "fp16_python"])
    for python, compiled in zip(ranks["fp16_python"], ranks["fp16"], strict=True):
        assert {**python, "wire_scale": None} == {**compiled, "wire_scale": None}


@pytest.mark.parametrize("find_unused", [False, True])
def test_ignored_outputs(find_unused: bool) -> None:
    per_hook(reducer_scenarios.ignored_output, find_unused)


def test_two_outputs_and_two_backwards_are_one_step() -> None:
    assert_counted(per_hook(reducer_scenarios.two_outputs_two_backwards), 3)


def assert_counted(counts: PerHook, expected: int) -> None:
    for hook, ranks in counts.items():
        assert ranks == ([expected] * 2 if hook in WITH_HANDLE else [None] * 2), hook


@pytest.mark.parametrize("grad_is_view", [False, True])
def test_synced_backwards_without_zeroing(grad_is_view: bool) -> None:
    per_hook(reducer_scenarios.two_synced_backwards_without_zeroing, grad_is_view)


@pytest.mark.parametrize("world_size", [2, 4])
def test_bucket_views_static_graph_zeroing_and_activation_checkpointing(world_size: int) -> None:
    hooks = EVERY_HOOK if world_size == 2 else ("fp16", "bf16")
    per_hook(reducer_scenarios.views_static_graph_and_zeroing, hooks=hooks, world_size=world_size)


def test_shared_weights_zeroing_and_bucket_views() -> None:
    per_hook(reducer_scenarios.shared_weight)


@pytest.mark.parametrize("world_size", [2, 4])
def test_two_to_the_15_stays_finite(world_size: int) -> None:
    per_hook(reducer_scenarios.two_to_the_15, world_size=world_size)


def test_process_group_destroyed_and_rebuilt(tmp_path: Path) -> None:
    per_hook(reducer_scenarios.group_rebuilt, str(tmp_path))


@pytest.mark.parametrize("hook", ["fp16_python", "fp16"])
def test_the_handle_may_be_the_last_owner_of_its_group(hook: str, tmp_path: Path) -> None:
    run_ranks(reducer_scenarios.handle_outlives_group, 2, "cpu", hook, str(tmp_path), timeout_s=30)


def test_mixed_dtypes_in_one_model() -> None:
    assert_only_fp32_is_narrowed(per_hook(layout_scenarios.mixed_dtypes, hooks=("stock", *EVERY_HOOK)))


def assert_only_fp32_is_narrowed(results: PerHook) -> None:
    for hook, ranks in results.items():
        for grads, wire_bytes in ranks:
            for dtype, grad in grads.items():
                narrowed = dtype == torch.float32 and wire_of(hook) in ("fp16", "bf16", "int8")
                if narrowed and hook == "int8":
                    continue  # 1 + 2**-12 in steps of a 127th of it
                assert torch.equal(grad, torch.ones(6) if narrowed else torch.full((6,), 1 + 2.0**-12, dtype=dtype)), (hook, dtype)
            if hook in WITH_HANDLE:  # FP32 as it is narrowed, FP64, FP16, BF16, complex64 and complex128 whole
                width = {"fp16": 2, "bf16": 2, "int8": 1}.get(wire_of(hook), 4)
                assert wire_bytes == 6 * (width + 8 + 2 + 2 + 8 + 16)


@pytest.mark.parametrize("hook", EVERY_HOOK)
def test_layouts_dtypes_and_bucket_sizes(hook: str) -> None:
    per_hook(layout_scenarios.layouts, hooks=[hook])


def test_strides_of_gradient_and_parameter_differ() -> None:
    per_hook(layout_scenarios.strides)


# distributed_test.py

OPTIMIZER_STEPS = 20


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers(optimizer: str) -> None:
    assert_trained_alike(per_hook(training.optimizer_run, optimizer, OPTIMIZER_STEPS, hooks=("stock", *EVERY_HOOK)), optimizer)


def assert_trained_alike(runs: PerHook, optimizer: str) -> None:
    """Gradients are positive and do not depend on the parameters, so their average is off by at most delta = W u of itself.

    SGD with momentum is linear in them: a parameter is off by at most delta of what it travels. Adam divides one average, within
    1 +- delta, by the root of another, within 1 +- delta: 2 delta / (1 - delta). Decay only shrinks what is off. FP32's own
    rounding: 10 a step in each of the two runs, of numbers up to 1 + travelled.
    """
    weights, travelled = runs["stock"][0]
    for a, b in zip(weights, runs["fp32"][0][0], strict=True):
        assert torch.equal(a, b)
    for hook in (hook for hook in NARROW if hook in runs):
        delta = 2 * UNIT[wire_of(hook)]
        relative = delta if optimizer == "sgd" else 2 * delta / (1 - delta)
        for index, (want, distance) in enumerate(zip(weights, travelled, strict=True)):
            got = runs[hook][0][0][index]
            limit = relative * distance + 2 * 10 * OPTIMIZER_STEPS * 2.0**-24 * (1 + distance)
            assert ((got.double() - want.double()).abs() <= limit).all(), hook
            assert not torch.equal(got, want)
            assert torch.equal(got, runs[hook][1][0][index])


@pytest.mark.parametrize("world_size", [2, 4])
def test_100_steps_of_known_gradients(world_size: int) -> None:
    per_hook(training.parity_of_100_steps, hooks=EVERY_HOOK if world_size == 2 else ("fp16", "bf16"), world_size=world_size)


def test_accumulation_under_no_sync_from_the_first_step() -> None:
    for hook, ranks in per_hook(training.accumulate_three).items():
        assert [state and state["steps"] for state in ranks] == ([3, 3] if hook in WITH_HANDLE else [None, None])


@pytest.mark.parametrize("batches", [(2, 5), (0, 3), (4, 4), (1, 3, 0, 2)])
def test_uneven_inputs_with_join(batches: tuple[int, ...]) -> None:
    assert_joined(per_hook(training.uneven_inputs, batches, world_size=len(batches)), batches)


def assert_joined(results: PerHook, batches: tuple[int, ...]) -> None:
    world_size = len(batches)
    # int8: two roundings of half a 127th of 8 in each step, with what they lost carried into the next.
    atol = {"int8": max(batches) * 2 * 8 / 254}
    for hook, ranks in results.items():
        for size, index in ((9, 0), (4, 1)):
            # A rank that has joined gives zeros; the average is over all, and Join spreads the parameters at the end.
            total = sum((whole(r, step, size) for r in range(world_size) for step in range(batches[r])), torch.zeros(size))
            for rank in range(world_size):
                torch.testing.assert_close(ranks[rank][0][index], -total / world_size, rtol=0, atol=atol.get(hook, 0.0))
                assert torch.equal(ranks[rank][0][index], ranks[0][0][index]), (hook, rank)
        if hook in WITH_HANDLE:
            assert [state["steps"] for _, state in ranks] == [max(batches)] * world_size


@pytest.mark.parametrize("stop_at", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(stop_at: int) -> None:
    assert_resumed_alike(*(per_hook(training.resumed_run, stop) for stop in (None, stop_at)))


def assert_resumed_alike(whole: PerHook, resumed: PerHook) -> None:
    for hook, ranks in whole.items():
        for (weights, state), (resumed_weights, resumed_state) in zip(ranks, resumed[hook], strict=True):
            for a, b in zip(weights, resumed_weights, strict=True):
                # int8: DDP's first buckets after the stop are other ones, and with them the blocks that share a scale. Five steps of
                # Adam of 0.01 each, whose directions differ by a tenth at most.
                torch.testing.assert_close(a, b, rtol=0, atol=5 * 0.01 * 0.1 if hook == "int8" else 0.0)
            if hook in WITH_HANDLE:  # the buckets are those of the first step once more
                counted = ("steps", "wire_bytes", "nonfinite_steps", "saturated_steps", "wire_scale")
                assert {name: state[name] for name in counted} == {name: resumed_state[name] for name in counted}
                assert state["nonfinite_steps"] == (1 if hook in NARROW or hook in ("int8", "fp16_scaled") else 0)


def test_hook_state_and_model_are_pickled_and_go_on() -> None:
    per_hook(training.pickled)


@pytest.mark.parametrize(
    ("options", "buckets"),
    [
        ({"bucket_cap_mb": 0.4}, 6),
        ({"bucket_cap_mb": 1}, 3),
        ({"bucket_cap_mb": 25}, 1),
        ({"bucket_cap_mb_list": [1, 2]}, 2),
        ({"bucket_cap_mb_list": [1, 1, 1], "gradient_as_bucket_view": True}, 3),
    ],
)
def test_bucket_sizes_and_lists(options: dict[str, Any], buckets: int) -> None:
    if "bucket_cap_mb_list" in options and "bucket_cap_mb_list" not in inspect.signature(DistributedDataParallel.__init__).parameters:
        pytest.skip("this torch has no bucket_cap_mb_list")
    assert_counted(per_hook(training.bucket_lists, options), buckets)
