"""The comparison of summation errors: held to real gloo ranks, which it must be able to fail; its arithmetic on made figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compare_accumulation as comparison
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
SUMMED = {
    "no hook: FP32": "none",
    "torch's FP16 hook: ring": "torch_fp16",
    '`"fp16"`, `accumulate="wire"`: ring': "gpualloc_fp16:accumulate=wire",
    '`"fp16"`, `accumulate="fp32"`': "gpualloc_fp16:accumulate=fp32",
}
LOST = {
    "torch's FP16 hook": "torch_fp16",
    '`"fp16"`, `wire_scale=1.0`': "gpualloc_fp16:accumulate=wire:wire_scale=1.0",
    '`"fp16"`': "gpualloc_fp16:accumulate=wire",
}


def test_as_it_is_called(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks/compare_accumulation.py"), "--world-sizes", "2,16", "--seeds", "1", "--seed", "0"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["equal_to_gloo_bit_for_bit"]["world_sizes"] == [2]
    assert len(result["rows"]) == 2 * 2 * len(comparison.HOOKS)
    found = {(row["loss_scale"], row["world_size"], row["hook"]): row for row in result["rows"]}
    ring, summed = (found[1, 16, f"gpualloc_fp16:accumulate={where}"]["normal_rms_relative"]["median"] for where in ("wire", "fp32"))
    assert summed < ring < 2.0**-10
    assert found[65536, 2, "torch_fp16"]["overflowed_share"]["median"] > 0
    assert found[65536, 2, "gpualloc_fp16:accumulate=wire"]["overflowed_share"]["median"] == 0


def test_the_ring_is_that_of_gloo() -> None:
    """Four ranks: the first world size at which the order of the sum shows."""
    wires = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)).half()
    summed = comparison.ring_sum(wires)
    for arrived in run_ranks(_all_reduce, 4, wires):
        assert torch.equal(arrived, summed)
    assert not torch.equal(summed, comparison.ring_sum(wires.flip(0)))  # in the opposite direction


def _all_reduce(rank: int, world_size: int, wires: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(wires[rank])
    return wires[rank]


def test_a_single_bit_that_differs_from_reality_is_an_error() -> None:
    averages = {(hook, 1.0, 5): simulate(comparison.random_gradients(2, 1.0, 5)) for hook, simulate in comparison.HOOKS.items()}
    comparison.check_against(averages, 2)
    averages["torch_fp16", 1.0, 5].view(torch.int32)[7] ^= 1
    with pytest.raises(SystemExit, match="torch_fp16, 2 ranks, seed 5: 1 averages differ from gloo's"):
        comparison.check_against(averages, 2)


def test_errors_of_known_averages() -> None:
    gradients = torch.tensor([[1.0, 8.0, 1e-3, 1.0], [3.0, -4.0, 1e-3, 1.0]])  # means 2, 2, 1e-3, 1; of magnitudes 2, 6, 1e-3, 1
    of = comparison.errors(torch.tensor([2.5, 3.5, 0.0, float("inf")]), gradients, normal_magnitude=0.5)
    assert of["max_relative"] == 1.0
    assert of["rms_relative"] == pytest.approx(((0.25**2 + 0.25**2 + 1) / 3) ** 0.5)
    assert of["normal_max_relative"] == of["normal_rms_relative"] == 0.25
    assert of["flushed_share"] == of["overflowed_share"] == 0.25


def test_the_guides_tables_are_the_committed_figures() -> None:
    result = json.loads((ROOT / "benchmarks/results/accumulation_error_2026-11-26.json").read_text())
    found = {(row["loss_scale"], row["world_size"], row["hook"]): row for row in result["rows"]}
    guide = (ROOT / "docs/hook.md").read_text()
    for title, hook in SUMMED.items():
        rows = [found[1, world_size, hook] for world_size in comparison.WORLD_SIZES]
        cells = [f"{row['normal_rms_relative']['median']:.1e} ({row['normal_max_relative']['median']:.1e})" for row in rows]
        assert f"| {title} | {' | '.join(cells)} |\n" in guide
    for title, hook in LOST.items():
        shares = [found[1, world_size, hook]["flushed_share"]["median"] for world_size in (2, 64)]
        shares += [found[65536, world_size, hook]["overflowed_share"]["median"] for world_size in (2, 64)]
        assert f"| {title} | {' | '.join(f'{share:.2%}' for share in shares)} |\n" in guide
