"""gpualloc's hook in a plain loop: `torchrun --nproc-per-node 2 examples/torch_hook.py`, or `python` for one process; GPUs or the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import gpualloc

DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def join() -> None:
    """The process group of torchrun, or one of this process alone."""
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    if DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def train(wire: str | None, checkpoint: Path | None = None) -> tuple[nn.Module, list[float], gpualloc.HookHandle | None]:
    """The trained model, the loss of each step, and the hook's handle; no hook where `wire` is None."""
    if not dist.is_initialized():
        join()
    torch.manual_seed(0)
    inputs = torch.randn(128, 8)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    batches = DataLoader(data, batch_size=32 // dist.get_world_size(), sampler=DistributedSampler(data))
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(DEVICE)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    hook = gpualloc.register_comm_hook(model, wire=wire) if wire else None  # before the first backward pass
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE, weights_only=True)
        net.load_state_dict(saved["model"])
        hook.load_state_dict(saved["hook"])

    losses = []
    for epoch in range(4):
        batches.sampler.set_epoch(epoch)
        for x, y in batches:
            loss = nn.functional.mse_loss(model(x.to(DEVICE)), y.to(DEVICE))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    if checkpoint is not None and dist.get_rank() == 0:
        torch.save({"model": net.state_dict(), "hook": hook.state_dict()}, checkpoint)
    return net, losses, hook


if __name__ == "__main__":
    _, losses, hook = train("auto")
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        print(hook.stats())
        print(hook.explain())
