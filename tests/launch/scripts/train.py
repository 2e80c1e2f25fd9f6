"""A small training whose result depends on every step: `train.py STEPS [SECONDS_A_STEP [PATH_OF_RESULT]]`.

With TRAIN_HANG=loop or lock, rank 1 hangs in its fourth batch: in an endless loop of the script, or on a lock in the data set.
"""

import os
import signal
import sys
import threading
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
hang = os.environ.get("TRAIN_HANG") if os.environ.get("RANK") == "1" else None


class Locking(TensorDataset):
    """Its lock is not given back by the 25th sample of a rank that hangs."""

    lock = threading.Lock()
    num_read = 0

    def __getitem__(self, index):
        self.lock.acquire()
        self.num_read += 1
        if hang != "lock" or self.num_read <= 24:
            self.lock.release()
        return super().__getitem__(index)


training = gpualloc.train.prepare(
    model,
    optimizer,
    Locking(inputs, inputs.sum(1, keepdim=True)),
    num_steps=int(sys.argv[1]),
    per_device_batch_size=8,
    scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(sys.argv[1])),
    timeout_s=float(os.environ.get("TRAIN_TIMEOUT_S", "30")),
)
print(f"begins at step {training.first_step} with {training.world_size} ranks", flush=True)
if hang:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else torchrun waits 30 s for it before it kills
for batch, targets in training.batches():
    while hang == "loop" and training.steps_done == 3:
        pass
    training.step(nn.functional.mse_loss(training.model(batch), targets))
    print(f"step {training.steps_done}", flush=True)
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
if len(sys.argv) > 3 and training.is_main:
    torch.save({name: value.clone() for name, value in model.state_dict().items()}, sys.argv[3])
