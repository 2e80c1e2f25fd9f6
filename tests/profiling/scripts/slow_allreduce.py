"""Communication-bound: two ranks that compute little and exchange the gradients of a wide layer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from common import DEVICE, NUM_STEPS, ON_GPU, join_ranks
from torch.nn.parallel import DistributedDataParallel

join_ranks()
width = 8192 if ON_GPU else 2048
model = DistributedDataParallel(torch.nn.Linear(width, width, bias=False).to(DEVICE), gradient_as_bucket_view=True)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
x = torch.randn(4, width, device=DEVICE)
for _ in range(NUM_STEPS):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
dist.destroy_process_group()
