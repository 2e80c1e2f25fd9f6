"""The same faults behind functions, with other names, and without a distributed sampler."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader


def train_step(model, optimizer, batch):
    output = F.cross_entropy(model(batch[0].cuda()), batch[1].cuda())
    output.backward()
    optimizer.step()
    return float(output)  # sync-point


def evaluate(model, loader):
    val_loss = 0.0
    for x, y in loader:
        val_loss += F.cross_entropy(model(x.cuda()), y.cuda()).item()
    return val_loss / len(loader.dataset)  # loss-average


def fit(net, dataset, config):
    dist.init_process_group("nccl")
    model = DistributedDataParallel(net.cuda())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)  # rescaling
    loader = DataLoader(dataset, config.batch_size, shuffle=True, num_workers=0)  # sampler pin-memory num-workers
    for _ in range(config.epochs):
        for batch in loader:
            train_step(model, optimizer, batch)
        evaluate(model, loader)


def in_one_process(net):
    return torch.nn.DataParallel(net.cuda())  # data-parallel
