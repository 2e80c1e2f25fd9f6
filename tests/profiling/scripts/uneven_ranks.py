"""Imbalance: of two ranks the second one computes four times as much, for few gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from common import DEVICE, NUM_STEPS, ON_GPU, join_ranks
from torch.nn.parallel import DistributedDataParallel

rank = join_ranks()
side, batch_size = (1024, 131072) if ON_GPU else (256, 2048)
model = DistributedDataParallel(torch.nn.Linear(side, side, bias=False).to(DEVICE))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
x = torch.randn(batch_size * (4 if rank == 1 else 1), side, device=DEVICE)
for _ in range(NUM_STEPS):
    optimizer.zero_grad()
    model(x).mean().backward()
    optimizer.step()
dist.destroy_process_group()
