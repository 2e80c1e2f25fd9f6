"""`DDPStrategy(ddp_comm_hook=...)`, which Lightning hands on to DDP on CUDA only: the handing on by itself, and the whole on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gpualloc.comm
from tests.ranks import run_ranks

THIRD = 1 / 3  # which no 16 bits hold


def test_lightning_registers_the_callable() -> None:
    pytest.importorskip("lightning")
    third = torch.tensor(THIRD)
    assert run_ranks(_register, 2) == [third.half().item(), third.half().item()]


def _register(rank: int, world_size: int) -> float:
    from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook

    ddp = DistributedDataParallel(nn.Linear(1, 1, bias=False))
    _register_ddp_comm_hook(ddp, ddp_comm_hook=gpualloc.comm.fp16_hook)
    ddp(torch.full((1, 1), THIRD)).sum().backward()
    return ddp.module.weight.grad.item()


@pytest.mark.gpu
@pytest.mark.nccl
def test_strategy_on_a_gpu() -> None:
    pytest.importorskip("lightning")
    ((hook, gradient),) = run_ranks(_fit, 1, backend="nccl")
    assert hook == "fp16_hook"
    assert gradient == torch.tensor(THIRD).half().item()


def _fit(rank: int, world_size: int) -> tuple[str, float]:
    import lightning
    from lightning.pytorch.strategies import DDPStrategy

    class Product(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
            return (self.weight * batch).sum()

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.gradient = self.weight.grad.item()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    strategy = DDPStrategy(ddp_comm_hook=gpualloc.comm.fp16_hook)
    module = Product()
    trainer = lightning.Trainer(
        accelerator="gpu", devices=1, strategy=strategy, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    hooks = []
    module.on_train_start = lambda: hooks.append(strategy.model)  # the strategy lets go of it at the end
    trainer.fit(module, torch.utils.data.DataLoader(torch.full((1,), THIRD)))
    return hooks[0]._get_ddp_logging_data()["comm_hook"], module.gradient
