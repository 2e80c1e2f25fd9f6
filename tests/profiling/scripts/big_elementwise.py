"""Memory-bound: elementwise operators on tensors past any cache."""

from __future__ import annotations

import torch
from common import DEVICE, NUM_STEPS, ON_GPU

numel = 2**28 if ON_GPU else 2**22
weight = torch.nn.Parameter(torch.ones(numel, device=DEVICE))
optimizer = torch.optim.SGD([weight], lr=1e-3, momentum=0.9)
x = torch.ones(numel, device=DEVICE)
for _ in range(NUM_STEPS):
    optimizer.zero_grad()
    (x * weight + x).relu().sum().backward()
    optimizer.step()
