"""The hooks held to what torch's own cases leave out; every hook on two to four gloo ranks. Over NCCL: test_torch_list_nccl.py."""

from __future__ import annotations

import os

import pytest
import torch

from tests.comm import beyond_scenarios as scenarios
from tests.comm.hook_table import EVERY_HOOK, UNIT, wire_of
from tests.comm.test_torch_list import PerHook, per_hook

EXTREMES = {"fits": (1e5, 0.0), "cancels": (1e5, -1e5), "near the top": (6e4, 6e4), "small": (4e-8, 4e-8)}
STEPS = 16
KEEP_SMALL = ("fp32", "auto", "int8", "bf16", "bf16_sum32", "bf16_callable", "fp16_scaled")
LOSE_SMALL = ("fp16", "fp16_sum32", "fp16_callable", "fp16_python")  # no wire scale


def test_local_gradients_beyond_fp16_whose_mean_fits_and_gradients_below_it() -> None:
    hooks = ("torch_fp16", *EVERY_HOOK)
    assert_extremes(per_hook(scenarios.constant, list(EXTREMES.values()), STEPS, hooks=hooks))


def assert_extremes(results: PerHook) -> None:
    for hook, ranks in results.items():
        assert all(repr(other) == repr(ranks[0]) for other in ranks), hook  # as text, in which NaN equals itself
        arrived = dict(zip(EXTREMES, ranks[0], strict=True))
        if hook == "torch_fp16":  # what the cases are about
            assert set(arrived["fits"]) == {float("inf")}
            assert not torch.tensor(arrived["cancels"]).isfinite().any()
            assert set(arrived["small"]) == {0.0}
            continue
        # W roundings, each of at most half an ulp of the mean magnitude; of int8, where all ranks have one value, none but FP32's own
        delta = 2 * UNIT[wire_of(hook)]
        assert arrived["fits"] == pytest.approx([5e4] * STEPS, rel=delta), hook
        assert arrived["cancels"] == [0.0] * STEPS, hook
        assert arrived["near the top"] == pytest.approx([6e4] * STEPS, rel=delta), hook
        if hook in KEEP_SMALL:
            assert arrived["small"][-1] == pytest.approx(4e-8, rel=delta), hook
        if hook in LOSE_SMALL:
            assert set(arrived["small"]) == {0.0}, hook


def test_inf_and_nan_arrive_where_they_were_and_are_counted_alike() -> None:
    assert_nonfinite_counted(per_hook(scenarios.nonfinite))


def assert_nonfinite_counted(results: PerHook) -> None:
    for hook, ranks in results.items():
        assert ranks[0] == ranks[1], hook
        if ranks[0] is not None:
            found, counted = zip(*ranks[0], strict=True)
            assert found == (0, 1, 0, 1, 0), hook
            if hook == "auto":  # still measuring, in FP32, which is not looked at on the way; found_inf looks
                assert counted == (0,) * 5
            else:
                assert counted == ((None,) * 5 if hook == "fp32" else (0, 1, 1, 2, 2)), hook


@pytest.mark.parametrize("world_size", [2, 4])
def test_odd_misaligned_empty_and_one_element_buckets(world_size: int) -> None:
    per_hook(scenarios.odd_buckets, world_size=world_size)


def test_a_group_of_one_rank() -> None:
    per_hook(scenarios.one_rank, world_size=1)


def test_two_process_groups_at_once() -> None:
    per_hook(scenarios.two_groups, world_size=4)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_bits_on_all_ranks_and_from_run_to_run(world_size: int) -> None:
    first, second = (per_hook(scenarios.gradients, world_size=world_size) for _ in range(2))
    assert_same_bits(first, second)


def assert_same_bits(first: PerHook, second: PerHook) -> None:
    for hook, ranks in first.items():
        for other in (*ranks, *second[hook]):
            for step, (ours, theirs) in enumerate(zip(ranks[0], other, strict=True)):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), (hook, step)


def test_complex_parameters_train_as_without_a_hook() -> None:
    assert_complex_as_stock(per_hook(scenarios.complex_model, hooks=("stock", *EVERY_HOOK)))


def assert_complex_as_stock(results: PerHook) -> None:
    for hook, ranks in results.items():
        for trained in ranks:
            assert torch.equal(trained, results["stock"][0]), hook


# What goes through the backend's all-reduce, where torch's profiler sees it. The network lab counts the bytes of the others.
ALL_REDUCED = ("fp32", "fp16", "bf16", "fp16_callable", "bf16_callable", "fp16_python")


def test_the_wire_carries_16_bits() -> None:
    assert_wire(per_hook(scenarios.wire, hooks=("stock", "torch_fp16", *ALL_REDUCED)))


def assert_wire(results: PerHook) -> None:
    types = {"stock": "float", "torch": "c10::Half", "fp32": "float", "fp16": "c10::Half", "bf16": "c10::BFloat16"}
    for hook, ranks in results.items():
        assert ranks == [{types[wire_of(hook)]}] * 2, hook


KEEPS_BUFFERS = ("fp16", "bf16")
BUFFERS_ARE_KEPT = "the compiled hook keeps its 16-bit buffers between steps, half of the gradients' bytes"
KEEPS_CHUNKS = ("fp16_scaled", "fp16_sum32", "bf16_sum32")  # four chunks in flight, whatever the model's size


needs_peak_reset = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")


@needs_peak_reset
def test_peak_memory_is_no_more_than_with_torchs_hook() -> None:
    hooks = [hook for hook in EVERY_HOOK if hook not in (*KEEPS_BUFFERS, "int8")]  # int8 keeps what narrowing lost
    assert_peaks(per_hook(scenarios.peak_memory_mib, hooks=("torch_fp16", *hooks)))


@needs_peak_reset
@pytest.mark.xfail(strict=True, reason=BUFFERS_ARE_KEPT)
def test_peak_memory_of_the_compiled_hook_is_no_more_than_with_torchs() -> None:
    assert_peaks(per_hook(scenarios.peak_memory_mib, hooks=("torch_fp16", *KEEPS_BUFFERS)))


def assert_peaks(peaks_mib: PerHook) -> None:
    """Within 1 MiB: half of the 2 MiB that the 16-bit form of the gradients takes; repeats were seen to differ by 0.6."""
    for hook, ranks in peaks_mib.items():
        for ours_mib, torchs_mib in zip(ranks, peaks_mib["torch_fp16"], strict=True):
            chunks_mib = 4 * 3 * 1 if hook in KEEPS_CHUNKS else 0  # sent, received and gathered: a MiB each with two ranks
            assert ours_mib <= torchs_mib + 1 + chunks_mib, (hook, peaks_mib)
