"""The benchmark's own steps with every strategy, on a model small enough for a test."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed.tensor import DTensor

from gpualloc.bench.measure import Trainer, _checksum, measure_rank
from gpualloc.bench.precision import autocast
from gpualloc.bench.rank_files import RankReport
from gpualloc.records import BenchCase
from gpualloc.strategies import data_of
from gpualloc.workloads import MODELS, GptConfig, open_batches

TINY_GPT = GptConfig(num_layers=2, num_heads=4, width=16, vocab_size=256, max_sequence_length=16)


def measure(rank: int, world_size: int, cases: list[BenchCase]) -> list[RankReport]:
    _make_gpt_small_tiny()
    return [measure_rank(case, rank=rank, device=torch.device("cpu")) for case in cases]


def overflow_on_one_rank(rank: int, world_size: int, cases: list[BenchCase], device: str = "cpu") -> list[list[tuple[bool, float]]]:
    """[cases][without, with one inf in a gradient of rank 0]: whether the optimiser stepped, and new loss scale over the old one."""
    _make_gpt_small_tiny()
    return [_overflow(rank, case, torch.device(device)) for case in cases]


def _overflow(rank: int, case: BenchCase, device: torch.device) -> list[tuple[bool, float]]:
    trainer = Trainer(case, rank=rank, device=device)
    data_case, data_rank = data_of(case, rank)
    batches = open_batches(data_case, rank=data_rank, pin_memory=False)
    trainer.step(batches)
    trainer.scaler.update(8.0)  # nothing overflows by itself
    outcomes = []
    for poisoned in (False, True):
        scale, before = trainer.scaler.get_scale(), _checksum(trainer.wrapped.model)
        trainer.optimizer.zero_grad()
        inputs, targets = next(batches)
        trainer.wrapped.forward_backward(
            (inputs.to(device), targets.to(device)), autocast=lambda: autocast(case.precision, device.type), scale=trainer.scaler.scale
        )
        if poisoned and rank == 0:
            gradient = next(parameter.grad for parameter in trainer.wrapped.model.parameters() if parameter.grad is not None)
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).view(-1)[0] = torch.inf
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        outcomes.append((_checksum(trainer.wrapped.model) != before, trainer.scaler.get_scale() / scale))
    return outcomes


def _make_gpt_small_tiny() -> None:
    MODELS["gpt_small"] = replace(MODELS["gpt_small"], gpt=TINY_GPT)
