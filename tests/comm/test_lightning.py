"""The Lightning callback: figures in the logger, and a run that goes on from a checkpoint as if it had not stopped."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks

pytest.importorskip("lightning")
BATCHES = 6


def _fit(folder: str, name: str, *, max_epochs: int, resume: str | None = None, num_devices: int = 2, hook: Any = None) -> dict[str, Any]:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import DDPStrategy

    from gpualloc.comm.lightning import GradientHook

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

        def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    lightning.seed_everything(0, verbose=False)
    inputs = torch.randn(BATCHES * 4 * num_devices, 8)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    hook = hook or GradientHook("fp16", every_steps=3)
    module = Regression()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=num_devices,
        strategy=DDPStrategy(gradient_as_bucket_view=True) if num_devices > 1 else "auto",
        max_epochs=max_epochs,
        callbacks=[hook, ModelCheckpoint(dirpath=f"{folder}/{name}", filename="kept", save_top_k=1)],
        logger=CSVLogger(folder, name=name, version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume)
    stats = None if hook.handle is None else hook.handle.stats()
    return {
        "weights": [parameter.detach().clone() for parameter in module.parameters()],
        "stats": None if stats is None else {"steps": stats.steps, "wire_bytes": stats.wire_bytes, "wire_scale": stats.wire_scale},
    }


def _fits(rank: int, world_size: int, folder: str) -> list[dict[str, Any]]:
    """Uninterrupted; its first half; its second half from the checkpoint; two trainings with one callback."""
    from gpualloc.comm.lightning import GradientHook

    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()}, TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = "0"  # Lightning wants to know; the process group is there already
    whole = _fit(folder, "whole", max_epochs=2)
    half = _fit(folder, "half", max_epochs=1)
    resumed = _fit(folder, "resumed", max_epochs=2, resume=f"{folder}/half/kept.ckpt")
    hook = GradientHook("fp16", every_steps=3)
    _fit(folder, "first", max_epochs=1, hook=hook)
    return [whole, half, resumed, _fit(folder, "second", max_epochs=1, hook=hook)]


def test_a_resumed_run_is_the_uninterrupted_one_and_its_figures_are_logged(tmp_path: Path) -> None:
    ranks = run_ranks(_fits, 2, str(tmp_path))
    for whole, half, resumed, second in ranks:
        assert half["stats"]["steps"] == BATCHES
        assert second["stats"]["steps"] == 2 * BATCHES  # its first training's, too
        assert resumed["stats"] == whole["stats"]
        assert resumed["stats"]["steps"] == 2 * BATCHES
        for weight, other, earlier in zip(whole["weights"], resumed["weights"], half["weights"], strict=True):
            assert torch.equal(weight, other)
            assert not torch.equal(weight, earlier)
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]  # of one rank
    numel = sum(weight.numel() for weight in ranks[0][0]["weights"])
    assert float(rows[-1]["gpualloc/wire_mb_per_step"]) == pytest.approx(2e-6 * numel)
    with (tmp_path / "resumed" / "metrics.csv").open() as file:
        assert [float(row["gpualloc/steps"]) for row in csv.DictReader(file)] == [9, 12]


def test_one_process_without_ddp_trains_without_the_hook(tmp_path: Path) -> None:
    alone = _fit(str(tmp_path), "alone", max_epochs=1, num_devices=1)
    assert alone["stats"] is None
    assert (tmp_path / "alone" / "kept.ckpt").is_file()
