"""A DDP script as it should be: nothing is to be found in it."""

import argparse
import math
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler


def evaluate(model, loader, device, world_size):
    model.eval()
    total = torch.zeros(2, device=device)
    with torch.no_grad():
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device))
            total += torch.stack([loss * inputs.size(0), torch.tensor(inputs.size(0), device=device)])
    dist.all_reduce(total)
    loss_sum, count = total.tolist()
    return loss_sum / count


def main(make_data, make_model):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args()
    dist.init_process_group("nccl")
    world_size = dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    batch_size = args.batch_size // world_size
    train_set, val_set = make_data()
    sampler = DistributedSampler(train_set)
    val_sampler = DistributedSampler(val_set, shuffle=False)
    options = {"num_workers": 4, "pin_memory": True, "persistent_workers": True}
    loader = DataLoader(train_set, batch_size=batch_size, sampler=sampler, **options)
    val_loader = DataLoader(val_set, batch_size=batch_size, sampler=val_sampler, num_workers=2, pin_memory=True)
    model = DDP(make_model().to(device), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scaler = torch.amp.GradScaler()
    for epoch in range(90):
        sampler.set_epoch(epoch)
        running = torch.zeros((), device=device)
        for step, (inputs, targets) in enumerate(loader):
            inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            with torch.autocast("cuda"):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            running += loss.detach()
            if step % 100 == 0 and dist.get_rank() == 0:
                print(f"{epoch} {step} {loss.item():.4f}")
            if step % 500 != 0:
                continue
            print(loss.item())
        mean = running / len(loader)
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        print(epoch, mean.item(), evaluate(model, val_loader, device, world_size))
        if math.isnan(mean.item()):
            raise SystemExit("diverged")
