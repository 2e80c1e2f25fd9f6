from __future__ import annotations

import subprocess
import sys

import pytest

from gpualloc.strategies import HOOKS, unsupported_reason, wrap
from tests.bench.cases import tiny_case
from tests.ranks import run_ranks

_HOOKS_ON_CPU = [hook for hook in HOOKS if unsupported_reason(tiny_case(hook=hook), num_gpus=0) is None]


def test_the_names_need_no_torch() -> None:
    program = "import sys, gpualloc.strategies, gpualloc.bench.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_torchs_bf16_hook_is_all_a_cpu_lacks() -> None:
    assert set(HOOKS) - set(_HOOKS_ON_CPU) == {"torch_bf16"}


def test_an_unknown_strategy_is_a_bug_of_the_caller() -> None:
    with pytest.raises(KeyError):
        wrap(tiny_case(strategy="zero"), None, None)  # type: ignore[arg-type]


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
        expected_bytes = {"none": 8, "torch_powersgd": 8, "gpualloc_fp32": 8, "gpualloc_auto": 8, "gpualloc_int8": 2}.get(hook, 4)
        for gradients, wire_bytes in (result[hook] for result in results):
            assert gradients == pytest.approx([1.5, 3.0], abs=3.0 / 127 if hook == "gpualloc_int8" else 0), hook
            assert wire_bytes == expected_bytes, hook


def compress(rank: int, world_size: int) -> tuple[list[float], int, float]:
    """(largest error of a layer's gradient in each step, bytes on the wire by formula, bytes by the hook's own count)."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 700_000, bias=False))  # over 20 MiB
    wrapped = wrap(tiny_case(hook="torch_powersgd"), model, torch.device("cpu"))
    errors = []
    for _ in range(4):
        model.zero_grad(set_to_none=True)
        inputs = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))  # of all ranks
        wrapped.model(inputs).sum().backward()
        gradient = model[0].weight.grad
        assert gradient is not None
        expected = torch.autograd.grad(model(inputs).sum(), model[0].weight)[0]
        errors.append(((gradient - expected).abs().max() / expected.abs().max()).item())
    return errors, wrapped.wire_bytes_per_step or 0, gradient.sum().item()


def test_powersgd_compresses_from_the_third_step_and_gives_a_gradient_of_rank_1_back() -> None:
    """With more than one of DDP's default buckets, of which torch's hook would hang or die with gloo."""
    for errors, wire_bytes, _ in (results := run_ranks(compress, 2)):
        assert wire_bytes == 4 * (8 + 8 + 700_000 + 8)
        assert errors[:2] == [0, 0], "averaged as they are"
        assert 0 < max(errors[2:]) < 1e-5, "a matrix of rank 1, through vectors in fp32"
    assert results[0][2] == results[1][2]
