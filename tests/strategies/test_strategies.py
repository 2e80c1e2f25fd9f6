from __future__ import annotations

import subprocess
import sys

import pytest

from gpualloc.strategies import HOOKS, hook_unsupported_reason, wrap
from tests.bench.cases import tiny_case
from tests.ranks import run_ranks

_HOOKS_ON_CPU = [hook for hook in HOOKS if hook_unsupported_reason(hook, precision="fp32", device="cpu") is None]


def test_the_names_need_no_torch() -> None:
    program = "import sys, gpualloc.strategies, gpualloc.bench.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_torchs_bf16_hook_is_all_a_cpu_lacks() -> None:
    assert set(HOOKS) - set(_HOOKS_ON_CPU) == {"torch_bf16"}


def test_an_unknown_strategy_is_a_bug_of_the_caller() -> None:
    with pytest.raises(KeyError):
        wrap(tiny_case(strategy="fsdp"), None, None)  # type: ignore[arg-type]


def train(rank: int, world_size: int) -> dict[str, tuple[list[float], int]]:
    """Hook -> (averaged gradients of two weights, bytes it should put on the wire)."""
    import torch

    found = {}
    for hook in _HOOKS_ON_CPU:
        model = torch.nn.Linear(2, 1, bias=False)
        wrapped = wrap(tiny_case(hook=hook), model, torch.device("cpu"))
        inputs = torch.tensor([[1.0, 2.0]]) * (rank + 1)
        with wrapped.no_sync():
            wrapped.model(inputs).sum().backward()
        assert model.weight.grad is not None
        assert model.weight.grad.flatten().tolist() == [rank + 1.0, 2 * (rank + 1.0)], "no_sync must leave the rank's own gradient"
        counted = wrapped.wire_bytes_per_step
        for _ in range(2):  # the wire scale of FP16 is learned in a first step in FP32
            before = wrapped.handle.stats().wire_bytes if wrapped.handle else 0
            model.zero_grad(set_to_none=True)
            wrapped.model(inputs).sum().backward()
            if wrapped.handle:
                counted = wrapped.handle.stats().wire_bytes - before
        found[hook] = (model.weight.grad.flatten().tolist(), counted)
    return found


def test_every_hook_averages_and_no_sync_keeps_gradients_apart() -> None:
    results = run_ranks(train, 2)
    for hook in _HOOKS_ON_CPU:
        # auto has not decided after two steps; int8 has a byte an element, its scales aside.
        expected_bytes = {"none": 8, "gpualloc_fp32": 8, "gpualloc_auto": 8, "gpualloc_int8": 2}.get(hook, 4)
        for gradients, wire_bytes in (result[hook] for result in results):
            assert gradients == pytest.approx([1.5, 3.0], abs=3.0 / 127 if hook == "gpualloc_int8" else 0), hook
            assert wire_bytes == expected_bytes, hook
