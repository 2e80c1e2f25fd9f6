"""gpualloc's hook in transformers' Trainer: `torchrun --nproc-per-node 2 examples/trainer_hook.py`, on GPUs or the CPU."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

import gpualloc


class GradientHook(TrainerCallback):
    """Registers the hook when DDP has the model and no backward pass has run yet."""

    def __init__(self, trainer: Trainer, wire: str) -> None:
        self.trainer = trainer  # what a callback is given is the model without its DDP
        self.wire = wire
        self.handle: gpualloc.HookHandle

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.handle = gpualloc.register_comm_hook(self.trainer.model_wrapped, wire=self.wire)


def train(wire: str | None) -> tuple[nn.Module, list[float], gpualloc.HookHandle | None]:
    """The trained model, the loss of each step, and the hook's handle; no hook where `wire` is None."""
    set_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    tokens = (torch.arange(64)[:, None] + torch.arange(16)) % 64  # they count
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=8,
            num_train_epochs=4,
            learning_rate=1e-2,
            ddp_find_unused_parameters=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens])
        hook = GradientHook(trainer, wire) if wire else None
        if hook:
            trainer.add_callback(hook)
        trainer.train()
    return trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], hook.handle if hook else None


if __name__ == "__main__":
    _, losses, handle = train("auto")
    if torch.distributed.get_rank() == 0:
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
        print(handle.stats())
