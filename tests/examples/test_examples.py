"""The examples as they are called, and what they train with the hook against what they train without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "torch_hook": "torch",
    "lightning_hook": "lightning",
    "accelerate_hook": "accelerate",
    "trainer_hook": "transformers",
}  # -> what it needs
OPTIMIZER_STEPS = 16


def run(example: str, folder: Path, world_size: int, *wires: str) -> tuple[str, list[dict[str | None, dict[str, Any]]]]:
    """(what the example printed, what each rank trained with each wire)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command = [*torchrun, str(ROOT / "tests/examples/run_both_ways.py"), str(ROOT / f"examples/{example}.py"), str(folder), *wires]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_trains_with_the_hook_as_without_it(example: str, tmp_path: Path) -> None:
    pytest.importorskip(EXAMPLES[example])
    printed, (first, second) = run(example, tmp_path, 2, "fp32", "fp16")
    assert "HookStats(wire='auto', native=True, steps=16" in printed
    numel = sum(weight.numel() for weight in first[None]["weights"])
    for wire, trained in first.items():
        assert trained["losses"][-1] < trained["losses"][0]
        for weight, other in zip(trained["weights"], second[wire]["weights"], strict=True):
            assert torch.equal(weight, other)
        if wire is not None:
            assert trained["stats"]["steps"] == OPTIMIZER_STEPS
            widths = [4] * OPTIMIZER_STEPS if wire == "fp32" else [4] + [2] * (OPTIMIZER_STEPS - 1)  # the first one learns the scale
            assert trained["stats"]["wire_bytes"] == sum(widths) * numel
    stock, fp32, fp16 = (first[wire]["weights"] for wire in (None, "fp32", "fp16"))
    for a, b in zip(stock, fp32, strict=True):
        assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(stock, fp16, strict=True))
    # Each step's gradient is off by two roundings of half an ulp: W u = 2**-10 of the mean magnitude. These models are smooth enough
    # for 16 such steps to leave the losses within 16 * 2**-10 of each other.
    assert first["fp16"]["losses"] == pytest.approx(first[None]["losses"], rel=OPTIMIZER_STEPS * 2.0**-10)


def test_the_plain_loop_runs_alone_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    program = (
        "import pathlib, runpy; train = runpy.run_path('examples/torch_hook.py')['train']\n"
        f"print([train('fp16', pathlib.Path({str(tmp_path / 'kept.pt')!r}))[2].stats().steps for _ in range(2)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[16, 32]\n", done.stderr


def test_what_the_guide_shows_is_what_the_examples_do() -> None:
    guide = (ROOT / "docs/hook_integrations.md").read_text()
    shown = re.findall(r"\(\.\./(examples/\w+\.py)\)\n\n```python\n(.*?)```", guide, re.DOTALL)
    assert len(shown) == len(list((ROOT / "examples").glob("*_hook.py")))
    for example, block in shown:
        lines = [line.strip() for line in (ROOT / example).read_text().splitlines()]
        for line in block.splitlines():
            assert line.strip() in lines, (example, line)


def test_fsdp_example_trains_with_the_hook_as_native_hsdp(tmp_path: Path) -> None:
    printed, ranks = run("fsdp_hook", tmp_path, 4, "fp16")
    assert "loss 0." in printed
    for trained in ranks:
        losses = trained["fp16"]["losses"]
        assert len(losses) == OPTIMIZER_STEPS
        assert losses[-1] < losses[0]
        assert losses == pytest.approx(trained[None]["losses"], rel=OPTIMIZER_STEPS * 2.0**-10)  # as above
        for weight, first in zip(trained["fp16"]["weights"], ranks[0]["fp16"]["weights"], strict=True):
            assert torch.equal(weight, first)
    assert not all(map(torch.equal, ranks[0]["fp16"]["weights"], ranks[0][None]["weights"]))
