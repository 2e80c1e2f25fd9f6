"""The hook's figures as metrics: which there are, at which steps, and that they are those of `stats()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc
from gpualloc.comm import StatsLogger
from gpualloc.errors import UsageError
from tests.ranks import run_ranks

COUNTED = {"steps", "wire_mb_per_step", "transfers_per_step", "nonfinite_steps", "saturated_steps", "wire_scale"}
TIMED = {"step_time_s", "compute_time_s", "comm_time_s", "exposed_comm_s", "hidden_comm_s", "overlap_ratio"}
Logged = list[tuple[int, dict[str, float]]]


def _train(rank: int, world_size: int, device: str, options: dict[str, Any], bad_step: int | None) -> tuple[Logged, dict[str, Any], int]:
    """(what was logged every 10 of 40 steps, the state at the end, the model's parameters). Rank 0 logs."""
    model = DistributedDataParallel(nn.Linear(300, 200).to(device), gradient_as_bucket_view=True)
    hook = gpualloc.register_comm_hook(model, **options)
    logged: Logged = []
    stats = StatsLogger(hook, lambda metrics, step: logged.append((step, metrics)), every_steps=10)
    for step in range(1, 41):
        inputs = torch.full((4, 300), torch.inf if step == bad_step else 1.0, device=device)
        with model.no_sync():
            model(inputs).sum().backward()
            if rank == 0:
                stats.after_step()  # a pass without a step says nothing
        model(inputs).sum().backward()
        model.zero_grad()
        if rank == 0:
            _after_step(stats, device)
    return logged, hook.state_dict(), sum(parameter.numel() for parameter in model.parameters())


def _after_step(stats: StatsLogger, device: str) -> None:
    """On a GPU, torch raises where the host would wait."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    stats.after_step()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()  # for what is read at the next report to be there


@pytest.mark.parametrize("native", [True, False], ids=["compiled", "python"])
def test_figures_every_ten_steps(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (logged, state, numel), (unlogged, _, _) = run_ranks(_train if native else _train_python, 2, "cpu", {"wire": "bf16"}, 7)
    assert unlogged == []
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    for number, (step, metrics) in enumerate(logged):
        # Steps 16 and 32 are timed, and known once the next one has begun.
        names = COUNTED | TIMED if native and step in (20, 40) else COUNTED
        assert {name.removeprefix("gpualloc/") for name in metrics} == names
        assert all(type(value) is float for value in metrics.values())
        assert metrics["gpualloc/steps"] == step
        assert metrics["gpualloc/nonfinite_steps"] == 1
        assert metrics["gpualloc/wire_mb_per_step"] == pytest.approx(2e-6 * numel)
        if number in (1, 3) and native:
            assert 0 <= metrics["gpualloc/exposed_comm_s"] <= metrics["gpualloc/step_time_s"]
            assert metrics["gpualloc/comm_time_s"] > 0
    assert state["nonfinite_steps"] == 1


def _train_python(rank: int, world_size: int, *args: Any) -> Any:
    from gpualloc import _native

    _native.available_or_warn = lambda: False
    return _train(rank, world_size, *args)


@pytest.mark.parametrize(("wire", "has"), [("fp16", True), ("fp32", False), ("auto", True)])
def test_the_scale_is_the_last_steps_and_fp32_counts_nothing(wire: str, has: bool) -> None:
    (logged, _, numel), _ = run_ranks(_train, 2, "cpu", {"wire": wire}, None)
    metrics = logged[-1][1]
    assert ("gpualloc/nonfinite_steps" in metrics) == has
    if wire == "fp16":  # gradients of 4.0: a power of two that leaves them three to four powers of room
        assert 2.0**15 / 16 <= 4 * metrics["gpualloc/wire_scale"] <= 2.0**15
        assert metrics["gpualloc/wire_mb_per_step"] == pytest.approx(2e-6 * numel)


@pytest.mark.gpu
@pytest.mark.nccl
def test_on_a_gpu_nothing_waits_and_counters_come_a_report_later() -> None:
    ((logged, state, _),) = run_ranks(_train, 1, "cuda", {"wire": "fp16"}, 7, backend="nccl")
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    assert "gpualloc/nonfinite_steps" not in logged[0][1]
    assert [metrics["gpualloc/nonfinite_steps"] for _, metrics in logged[1:]] == [1, 1, 1]
    assert "gpualloc/exposed_comm_s" in logged[1][1]
    assert state["nonfinite_steps"] == 1


def test_every_zero_steps_is_refused() -> None:
    with pytest.raises(UsageError, match=r"every_steps=0; choose a whole number above 0"):
        StatsLogger(None, print, every_steps=0)
