"""A convolutional network on handwritten digits, alone, under torchrun or by `gpualloc run`.

    python examples/train_image.py
    torchrun --nproc-per-node 2 examples/train_image.py --checkpoint digits.pt

The three lines that `gpualloc.train` takes are marked. Digits: scikit-learn's copy of the UCI ML hand-written digits, 8x8 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import gpualloc.train
from gpualloc.records import BenchCase


def make_network() -> nn.Module:
    """Ten logits of images [B, 1, size, size] of any size from 4 px."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def measured(case: BenchCase) -> tuple[nn.Module, Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]], nn.Module]:
    """The same network for `gpualloc bench` and `gpualloc study`: --model train_image:measured, run from this folder."""
    assert case.image_size_px is not None

    def make_batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(case.per_device_batch_size, 1, case.image_size_px, case.image_size_px, generator=generator)
        return images, torch.randint(10, (case.per_device_batch_size,), generator=generator)

    return make_network(), make_batch, nn.CrossEntropyLoss()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="images of one backward pass on one device")
    parser.add_argument("--image-size", type=int, default=32, help="pixels; the digits are scaled to it")
    parser.add_argument("--checkpoint", help="file to save to and to go on from")
    arguments = parser.parse_args()

    torch.manual_seed(0)  # the same weights on every rank
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=arguments.image_size)
    labels = torch.tensor(digits.target)
    is_test = torch.arange(len(labels)) % 5 == 0
    model = make_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    training = gpualloc.train.prepare(  # 1
        model,
        optimizer,
        TensorDataset(images[~is_test], labels[~is_test]),
        num_epochs=arguments.epochs,
        per_device_batch_size=arguments.batch_size,
        checkpoint=arguments.checkpoint,
    )
    for inputs, targets in training.batches():  # 2
        loss = F.cross_entropy(training.model(inputs), targets)
        training.step(loss)  # 3

    training.model.eval()
    with torch.no_grad():  # on every rank, as FSDP gathers the weights from all of them
        right = training.model(images[is_test].to(training.device)).argmax(1).cpu() == labels[is_test]
    if training.is_main:
        print(f"{training.steps_done} steps; {right.float().mean():.1%} of {len(right)} held-out digits right")
    if torch.distributed.is_initialized():  # prepare joined a process group if torchrun started this
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
