"""Everything the doctor looks for, each on a line that ends in its rule."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

ACCUMULATE = 4


def average_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)  # loss-average


def main(dataset: torch.utils.data.Dataset, criterion: nn.Module) -> None:
    dist.init_process_group("nccl")
    world_size = dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    model = DDP(nn.Linear(8, 8).to(device), find_unused_parameters=True)  # unused-parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # rescaling
    sampler = DistributedSampler(dataset)  # set-epoch
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)  # pin-memory num-workers
    for epoch in range(10):
        total = 0.0
        for step, (inputs, targets) in enumerate(loader):
            loss = criterion(model(inputs.to(device)), targets.to(device)) / world_size  # loss-average
            loss.backward()
            if (step + 1) % ACCUMULATE == 0:  # accumulation
                optimizer.step()
                optimizer.zero_grad()
            total += loss.item() * inputs.size(0)  # sync-point
            print(f"{epoch} {loss}")  # sync-point
            if dist.get_rank() == 0:
                print(loss.detach().cpu())  # sync-point
            if torch.isnan(loss):  # sync-point
                break
            torch.cuda.synchronize()  # sync-point
        mean = total / len(loader.dataset)  # loss-average
        epoch_loss = loss.detach().clone()
        dist.all_reduce(epoch_loss)  # loss-average
        print(epoch, mean, epoch_loss.item())
