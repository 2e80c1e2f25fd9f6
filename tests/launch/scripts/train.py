"""A small training whose result depends on every step: `train.py STEPS [SECONDS_A_STEP [PATH_OF_RESULT]]`."""

import os
import sys
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import gpualloc.train

torch.manual_seed(0)
torch.set_num_threads(1)
inputs = torch.randn(256, 8)
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
training = gpualloc.train.prepare(
    model,
    optimizer,
    TensorDataset(inputs, inputs.sum(1, keepdim=True)),
    num_steps=int(sys.argv[1]),
    per_device_batch_size=8,
    scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(sys.argv[1])),
    timeout_s=float(os.environ.get("TRAIN_TIMEOUT_S", "30")),
)
print(f"begins at step {training.first_step} with {training.world_size} ranks", flush=True)
for batch, targets in training.batches():
    training.step(nn.functional.mse_loss(training.model(batch), targets))
    print(f"step {training.steps_done}", flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
if len(sys.argv) > 3 and training.is_main:
    torch.save({name: value.clone() for name, value in model.state_dict().items()}, sys.argv[3])
