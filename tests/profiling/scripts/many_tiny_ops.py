"""Launch-bound: hundreds of operators on a handful of numbers."""

from __future__ import annotations

import torch
from common import DEVICE, NUM_STEPS

weight = torch.nn.Parameter(torch.ones(16, device=DEVICE))
optimizer = torch.optim.SGD([weight], lr=1e-3)
for _ in range(NUM_STEPS):
    x = torch.ones(16, device=DEVICE)
    for _ in range(300):
        x = x * weight + 0.1
        x = x - 0.1
    optimizer.zero_grad()
    x.sum().backward()
    optimizer.step()
