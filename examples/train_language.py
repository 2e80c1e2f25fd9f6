"""A small GPT on the letters of a text, alone, under torchrun or by `gpualloc run`.

    python examples/train_language.py
    torchrun --nproc-per-node 2 examples/train_language.py --text my.txt --checkpoint letters.pt

The three lines that `gpualloc.train` takes are marked. The default text is what `help()` of Python knows of the language.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import gpualloc.train
from gpualloc.records import BenchCase

NUM_LETTERS = 128  # ASCII


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of a text that follow one another: letters, and the letters that come after them."""

    def __init__(self, text: str, length: int) -> None:
        self.letters = torch.tensor([min(ord(letter), NUM_LETTERS - 1) for letter in text])
        self.length = length

    def __len__(self) -> int:
        return (len(self.letters) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self.letters[index * self.length : (index + 1) * self.length + 1]
        return piece[:-1], piece[1:]


class Gpt(nn.Module):
    """Pre-norm transformer blocks with causal attention."""

    def __init__(self, *, width: int, depth: int, num_heads: int, length: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(NUM_LETTERS, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_LETTERS))

    def forward(self, letters: Tensor) -> Tensor:
        length = letters.shape[1]
        x = self.letters(letters) + self.places(torch.arange(length, device=letters.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=letters.device)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


class NextLetterLoss(nn.Module):
    """Mean cross-entropy, nats a letter, of logits [B, T, letters] and letters [B, T]."""

    def forward(self, logits: Tensor, letters: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), letters.flatten())


def measured(case: BenchCase) -> tuple[nn.Module, Callable[[torch.Generator], tuple[Tensor, Tensor]], nn.Module]:
    """The default model for `gpualloc bench` and `gpualloc study`: --model train_language:measured, run from this folder."""
    assert case.sequence_length is not None
    length = case.sequence_length

    def make_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        letters = torch.randint(NUM_LETTERS, (case.per_device_batch_size, length + 1), generator=generator)
        return letters[:, :-1], letters[:, 1:]

    return Gpt(width=64, depth=2, num_heads=4, length=length), make_batch, NextLetterLoss()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, help="a file; default: Python's own help")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="pieces of one backward pass on one device")
    parser.add_argument("--length", type=int, default=64, help="letters of a piece")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--checkpoint", help="file to save to and to go on from")
    arguments = parser.parse_args()

    torch.manual_seed(0)  # the same weights on every rank
    text = arguments.text.read_text() if arguments.text else "\n".join(pydoc_data.topics.topics.values())
    model = Gpt(width=arguments.width, depth=arguments.depth, num_heads=4, length=arguments.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

    training = gpualloc.train.prepare(  # 1
        model,
        optimizer,
        Windows(text, arguments.length),
        num_steps=arguments.steps,
        per_device_batch_size=arguments.batch_size,
        scheduler=scheduler,
        max_grad_norm=1.0,
        checkpoint=arguments.checkpoint,
    )
    next_letter_loss = NextLetterLoss()
    first = last = None
    for letters, next_letters in training.batches():  # 2
        loss = next_letter_loss(training.model(letters), next_letters)
        training.step(loss)  # 3
        last = loss.detach()
        first = last if first is None else first
    if training.is_main and first is not None and last is not None:
        print(f"{training.steps_done} steps; loss {first.item():.3f} -> {last.item():.3f} nats a letter")
    if torch.distributed.is_initialized():  # prepare joined a process group if torchrun started this
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
