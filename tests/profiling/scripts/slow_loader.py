"""Input-bound: every sample takes a while to load, in this process."""

from __future__ import annotations

import time

import torch
from common import DEVICE, NUM_STEPS
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 8


class SlowSamples(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return NUM_STEPS * BATCH_SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.002)
        return torch.full((256,), float(index))


model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 256)).to(DEVICE)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
for batch in DataLoader(SlowSamples(), batch_size=BATCH_SIZE):
    loss = model(batch.to(DEVICE)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")
