"""16 bits between the replicas of an FSDP2 model: `torchrun --nproc-per-node 4 examples/fsdp_hook.py`, on GPUs or the CPU."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gpualloc.comm.fsdp import register_fsdp_hook

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_REPLICAS = 2  # on a cluster: the number of nodes


def train(wire: str | None) -> tuple[nn.Module, list[float], None]:
    """The trained model and this rank's loss of each step; native HSDP where `wire` is None."""
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(DEVICE, (NUM_REPLICAS, int(os.environ["WORLD_SIZE"]) // NUM_REPLICAS), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(DEVICE)
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh["shard"] if wire else mesh)
    if wire:
        register_fsdp_hook(model, mesh["replicate"].get_group(), wire)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1 + dist.get_rank())
    inputs = torch.randn(32, 8, device=DEVICE)
    losses = []
    for _ in range(16):
        loss = nn.functional.mse_loss(model(inputs), inputs.mean(1, keepdim=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses, None


if __name__ == "__main__":
    _, losses, _ = train("bf16")
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
