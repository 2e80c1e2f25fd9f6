"""Under torchrun: runs an example as it is, then trains it without the hook and with it, and saves what came out on each rank.

usage: run_both_ways.py EXAMPLE FOLDER WIRE...
"""

from __future__ import annotations

import dataclasses
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


example, folder, *wires = sys.argv[1:]
train = runpy.run_path(example, run_name="__main__")["train"]
results = {}
for wire in (None, *wires):
    model, losses, handle = train(wire)
    weights = [whole(parameter).detach().cpu() for parameter in model.parameters()]
    results[wire] = {"weights": weights, "losses": losses, "stats": dataclasses.asdict(handle.stats()) if handle else None}
torch.save(results, Path(folder) / f"{dist.get_rank()}.pt")
dist.destroy_process_group()
