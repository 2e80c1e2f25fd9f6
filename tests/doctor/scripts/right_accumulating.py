"""Accumulation, gradients averaged by hand, a loss reduced in a function that divides: nothing is to be found in it."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

WORLD = int(os.environ["WORLD_SIZE"])


def average_gradients(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
        parameter.grad /= WORLD


def mean_over_ranks(loss):
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def train_step(model, micro_batches, accum):
    for number, (inputs, targets) in enumerate(micro_batches):
        is_last = number == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else model.no_sync():
            loss = torch.nn.functional.mse_loss(model(inputs), targets) / accum
            loss.backward()
    return loss.detach()


def main(inputs, targets, rank):
    accum = 4
    learning_rate = 3e-4 * WORLD**0.5
    model = DistributedDataParallel(torch.nn.Linear(8, 1).to("cuda"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    shard = TensorDataset(inputs[rank::WORLD], targets[rank::WORLD])
    loader = DataLoader(shard, batch_size=32, shuffle=True, pin_memory=True)
    log_every = int(os.environ.get("LOG_EVERY", "50"))
    losses = []
    for step, batch in enumerate(loader):
        loss = train_step(model, [batch] * accum, accum)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        lossf = 0.0
        if step % log_every == 0:
            lossf = loss.item()
            print(f"{step}: {lossf}")
    print(torch.stack(losses).mean().item(), mean_over_ranks(losses[-1]).item())
