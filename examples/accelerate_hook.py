"""gpualloc's hook with Accelerate: `torchrun --nproc-per-node 2 examples/accelerate_hook.py`, on GPUs or the CPU."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gpualloc


def train(wire: str | None) -> tuple[nn.Module, list[float], gpualloc.HookHandle | None]:
    """The trained model, the loss of each step, and the hook's handle; no hook where `wire` is None."""
    set_seed(0)
    inputs = torch.randn(128, 8)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=2,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    model, optimizer, batches = accelerator.prepare(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True).sin()), batch_size=8),
    )
    handle = gpualloc.register_comm_hook(model, wire=wire) if wire else None  # `prepare` has wrapped it in DDP
    losses = []
    for _ in range(4):
        for x, y in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return net, losses, handle


if __name__ == "__main__":
    _, losses, handle = train("auto")
    if torch.distributed.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} batches")
        print(handle.stats())
