"""A script that prints what no terminal wants, and trains to a loss that is NaN from the first step."""

import sys

import torch
from torch.utils.data import TensorDataset

import gpualloc.train

sys.stdout.buffer.write(b"\xff\xfe not UTF-8 \x1b[2J\x07" + b"x" * 100_000 + b"\nlast line\n")
sys.stdout.buffer.flush()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = TensorDataset(torch.full((64, 4), float("nan")), torch.ones(64, 1))
training = gpualloc.train.prepare(model, optimizer, data, num_steps=4, per_device_batch_size=4)
for inputs, targets in training.batches():
    training.step(torch.nn.functional.mse_loss(training.model(inputs), targets))
