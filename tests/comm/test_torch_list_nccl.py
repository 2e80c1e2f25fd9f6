"""torch's list and what is beyond it on 2 NCCL ranks sharing one GPU: one process group for nearly all, since starting one takes seconds.

The scenarios are those of the gloo tests with device="cuda", and so are the assertions. Left out: sparse gradients, which NCCL does not
reduce, and peers that die or stall, which would end the other cases.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.comm import beyond_scenarios as beyond
from tests.comm import compile_scenarios as compiling
from tests.comm import test_beyond_torch as beyond_torch
from tests.comm import test_torch_list as torch_list
from tests.comm import torch_hook_scenarios as hook_scenarios
from tests.comm import torch_layout_scenarios as layout_scenarios
from tests.comm import torch_reducer_scenarios as reducer_scenarios
from tests.comm import torch_training_scenarios as training
from tests.comm.hook_table import EVERY_HOOK
from tests.comm.test_compiled_models import assert_overlap
from tests.comm.test_torch_list import OPTIMIZER_STEPS, PerHook
from tests.ranks import run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.nccl]

CALLABLES = ("fp16_callable", "bf16_callable")
WITH_STOCK = ("stock", *EVERY_HOOK)
WITH_TORCHS = ("torch_fp16", *EVERY_HOOK)
JOINED = ((2, 5), (0, 3))
OPTIMIZERS = ("sgd", "adam", "adamw")

Case = tuple[Callable[..., Any], Sequence[str], tuple[Any, ...]]  # scenario, hooks, further arguments
CASES: dict[str, Case] = {
    "known numbers": (hook_scenarios.eight_and_its_square, WITH_STOCK, ()),
    "chained futures": (hook_scenarios.chained_futures, CALLABLES, ()),
    "ignored output": (reducer_scenarios.ignored_output, EVERY_HOOK, (False,)),
    "ignored output, find unused": (reducer_scenarios.ignored_output, EVERY_HOOK, (True,)),
    "two outputs": (reducer_scenarios.two_outputs_two_backwards, EVERY_HOOK, ()),
    "without zeroing": (reducer_scenarios.two_synced_backwards_without_zeroing, EVERY_HOOK, (True,)),
    "views, static graph": (reducer_scenarios.views_static_graph_and_zeroing, EVERY_HOOK, ()),
    "shared weight": (reducer_scenarios.shared_weight, EVERY_HOOK, ()),
    "2 to the 15": (reducer_scenarios.two_to_the_15, EVERY_HOOK, ()),
    "mixed dtypes": (layout_scenarios.mixed_dtypes, WITH_STOCK, ()),
    "layouts": (layout_scenarios.layouts, EVERY_HOOK, ()),
    "strides": (layout_scenarios.strides, EVERY_HOOK, ()),
    **{name: (training.optimizer_run, WITH_STOCK, (name, OPTIMIZER_STEPS)) for name in OPTIMIZERS},
    "100 steps": (training.parity_of_100_steps, EVERY_HOOK, ()),
    "no_sync": (training.accumulate_three, EVERY_HOOK, ()),
    **{f"join {batches}": (training.uneven_inputs, EVERY_HOOK, (batches,)) for batches in JOINED},
    "uninterrupted": (training.resumed_run, EVERY_HOOK, (None,)),
    "resumed": (training.resumed_run, EVERY_HOOK, (3,)),
    "pickled": (training.pickled, EVERY_HOOK, ()),
    "buckets": (training.bucket_lists, EVERY_HOOK, ({"bucket_cap_mb": 1},)),
    "extremes": (beyond.constant, WITH_TORCHS, (list(beyond_torch.EXTREMES.values()), beyond_torch.STEPS)),
    "nonfinite": (beyond.nonfinite, EVERY_HOOK, ()),
    "odd buckets": (beyond.odd_buckets, EVERY_HOOK, ()),
    "two groups": (beyond.two_groups, EVERY_HOOK, ()),
    "first run": (beyond.gradients, EVERY_HOOK, ()),
    "second run": (beyond.gradients, EVERY_HOOK, ()),
    "complex": (beyond.complex_model, WITH_STOCK, ()),
    "wire": (beyond.wire, ("stock", "torch_fp16", *beyond_torch.ALL_REDUCED), ()),
    "peak memory": (beyond.peak_memory_mib, WITH_TORCHS, ()),
    "compiled": (compiling.compiled, EVERY_HOOK, ("inside", True)),
    "compiled without DDPOptimizer": (compiling.compiled, ("fp16", "fp16_callable"), ("inside", False)),
}
WITHOUT_HOOK = {
    "one registration": hook_scenarios.only_one_registration,
    "refused callables": hook_scenarios.refused_callables,
    "wrong returns": hook_scenarios.wrong_returns_around_ours,
}


class Failed(str):
    """The traceback of a case that raised; the cases after it run all the same."""


def _attempt(scenario: Callable[..., Any], *args: Any) -> Any:
    try:
        return scenario(*args)
    except Exception:
        return Failed(traceback.format_exc())


def _everything(rank: int, world_size: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, (scenario, hooks, args) in CASES.items():
        results[name] = {hook: _attempt(scenario, rank, world_size, "cuda", hook, *args) for hook in hooks}
    for name, alone in WITHOUT_HOOK.items():
        results[name] = {"": _attempt(alone, rank, world_size, "cuda")}
    return results


@pytest.fixture(scope="module")
def results() -> dict[str, PerHook]:
    ranks = run_ranks(_everything, 2, backend="nccl", timeout_s=500)
    return {name: {hook: [rank[name][hook] for rank in ranks] for hook in ranks[0][name]} for name in ranks[0]}


@pytest.mark.timeout(550)
@pytest.mark.parametrize("name", [*CASES, *WITHOUT_HOOK])
def test_scenario_raised_nothing(results: dict[str, PerHook], name: str) -> None:
    failed = {hook: outcome for hook, ranks in results[name].items() for outcome in ranks if isinstance(outcome, Failed)}
    assert not failed, "\n".join(f"{hook}:\n{text}" for hook, text in failed.items())


def test_known_numbers_and_buckets_in_order(results: dict[str, PerHook]) -> None:
    torch_list.assert_close_to_no_hook(results["known numbers"])
    torch_list.assert_only_the_last_is_last(results["chained futures"])
    torch_list.assert_counted(results["two outputs"], 3)
    torch_list.assert_counted(results["buckets"], 3)


def test_mixed_dtypes(results: dict[str, PerHook]) -> None:
    torch_list.assert_only_fp32_is_narrowed(results["mixed dtypes"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(results: dict[str, PerHook], optimizer: str) -> None:
    torch_list.assert_trained_alike(results[optimizer], optimizer)


@pytest.mark.parametrize("batches", JOINED)
def test_join(results: dict[str, PerHook], batches: tuple[int, ...]) -> None:
    torch_list.assert_joined(results[f"join {batches}"], batches)


def test_resumed(results: dict[str, PerHook]) -> None:
    torch_list.assert_resumed_alike(results["uninterrupted"], results["resumed"])


def test_extremes_and_nonfinite(results: dict[str, PerHook]) -> None:
    beyond_torch.assert_extremes(results["extremes"])
    beyond_torch.assert_nonfinite_counted(results["nonfinite"])


def test_same_bits(results: dict[str, PerHook]) -> None:
    beyond_torch.assert_same_bits(results["first run"], results["second run"])
    beyond_torch.assert_complex_as_stock(results["complex"])


def test_wire(results: dict[str, PerHook]) -> None:
    beyond_torch.assert_wire(results["wire"])


@pytest.mark.xfail(reason=beyond_torch.BUFFERS_ARE_KEPT)
def test_peak_memory(results: dict[str, PerHook]) -> None:
    beyond_torch.assert_peaks(results["peak memory"])


def test_compiled(results: dict[str, PerHook]) -> None:
    assert_overlap(results["compiled"], overlaps=True)
    assert_overlap(results["compiled without DDPOptimizer"], overlaps=False)


@pytest.mark.timeout(200)
def test_group_of_one_rank() -> None:
    run_ranks(_one_rank, 1, backend="nccl", timeout_s=120)


def _one_rank(rank: int, world_size: int) -> None:
    for hook in EVERY_HOOK:
        beyond.one_rank(rank, world_size, "cuda", hook)


@pytest.mark.timeout(200)
def test_process_group_destroyed_and_rebuilt(tmp_path: Path) -> None:
    run_ranks(_rebuilt, 2, str(tmp_path), backend="nccl", timeout_s=150)


def _rebuilt(rank: int, world_size: int, folder: str) -> None:
    for hook in ("fp16", "fp16_callable"):
        reducer_scenarios.group_rebuilt(rank, world_size, "cuda", hook, folder)
