"""Compute-bound: products of large matrices, many of them for each parameter that the optimizer reads."""

from __future__ import annotations

import torch
from common import DEVICE, NUM_STEPS, ON_GPU

side, batch_size, dtype = (4096, 32768, torch.bfloat16) if ON_GPU else (512, 2048, torch.float32)
model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(2))).to(DEVICE, dtype)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
x = torch.randn(batch_size, side, device=DEVICE, dtype=dtype)
for _ in range(NUM_STEPS):
    optimizer.zero_grad()
    model(x).mean().backward()
    optimizer.step()
