"""gpualloc's hook in Ray Train: `python examples/ray_train_hook.py`, on the cluster of RAY_ADDRESS or one that is started here."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gpualloc

NUM_EPOCHS = 4


def train(settings: dict[str, Any]) -> None:
    """What every worker runs. Once an epoch it reports the loss and the hook's figures, and keeps a checkpoint."""
    torch.manual_seed(0)
    inputs = torch.randn(128, 8)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    model = prepare_model(net, parallel_strategy_kwargs={"gradient_as_bucket_view": True})
    hook = gpualloc.register_comm_hook(model, wire=settings["wire"])  # `prepare_model` has wrapped it in DDP
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    batches = prepare_data_loader(DataLoader(data, batch_size=32 // ray.train.get_context().get_world_size()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if ray.train.get_checkpoint() is not None:
        with ray.train.get_checkpoint().as_directory() as folder:
            saved = torch.load(f"{folder}/saved.pt", weights_only=True)
        net.load_state_dict(saved["model"])
        hook.load_state_dict(saved["hook"])

    figures: dict[str, float] = {}
    stats = gpualloc.comm.StatsLogger(hook, lambda metrics, step: figures.update(metrics), every_steps=len(batches))
    for _ in range(NUM_EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            stats.after_step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save({"model": net.state_dict(), "hook": hook.state_dict()}, f"{folder}/saved.pt")
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), **figures}, checkpoint=checkpoint)  # on every worker


def main(wire: str = "auto", num_workers: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:  # on a cluster: storage that all nodes see
        trainer = TorchTrainer(
            train,
            train_loop_config={"wire": wire},
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(storage_path=folder, name="hook"),
        )
        result = trainer.fit()
        print(", ".join(f"{name} {value:g}" for name, value in sorted(result.metrics.items())))


if __name__ == "__main__":
    main(*sys.argv[1:2])
