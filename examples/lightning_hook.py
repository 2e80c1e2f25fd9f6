"""gpualloc's hook in Lightning: `torchrun --nproc-per-node 2 examples/lightning_hook.py`, on GPUs or the CPU."""

from __future__ import annotations

import os

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gpualloc
from gpualloc.comm.lightning import GradientHook


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(wire: str | None) -> tuple[nn.Module, list[float], gpualloc.HookHandle | None]:
    """The trained model, the loss of each step, and the hook's handle; no hook where `wire` is None."""
    lightning.seed_everything(0, verbose=False)
    inputs = torch.randn(128, 8)
    model = Regression()
    hook = GradientHook(wire) if wire else None
    trainer = lightning.Trainer(
        strategy=DDPStrategy(gradient_as_bucket_view=True),
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),  # of torchrun
        max_epochs=4,
        callbacks=[hook] if hook else None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True).sin()), batch_size=16))
    return model, model.losses, hook.handle if hook else None


if __name__ == "__main__":
    _, losses, handle = train("auto")
    if torch.distributed.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        print(handle.stats())
