"""Made-up data that can be learned, generated once per rank and served from memory, so that loading costs nothing.

Every rank draws its own samples of the same classes or the same language.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from gpualloc.records import BenchCase
from gpualloc.workloads.data import SYNTHETIC_NUM_BATCHES, SYNTHETIC_NUM_CLASSES, synthetic_pool_samples, synthetic_stride
from gpualloc.workloads.loading import Batch, read_batches
from gpualloc.workloads.models import find_model
from gpualloc.workloads.seeds import make_generator
from gpualloc.workloads.user_model import make_user_batches

_PATTERN_SIZE_PX = 4  # side of the random pattern that, enlarged, marks a class
_ALPHABET_SIZE = 64  # tokens that occur; the first thing a model learns
_NUM_SUCCESSORS = 4  # equally likely next tokens: below ln 4 = 1.39 a model has learnt the batches by heart


def open_synthetic_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[Batch]:
    """`SYNTHETIC_NUM_BATCHES` distinct batches in turn, for ever; they are views of one pool and must not be written to.

    Where the case gives a number of workers, a DataLoader copies them from the pool instead: the path of real data without its decoding.
    """
    make_pool = _make_images if case.workload == "image" else _make_tokens
    has_loader = case.num_workers is not None
    pool = _Pool(case, *make_pool(case, rank=rank, pin_memory=pin_memory and not has_loader))
    order = itertools.cycle(range(SYNTHETIC_NUM_BATCHES))
    if case.num_workers is not None:
        return read_batches(pool, order, case, rank=rank, num_workers=case.num_workers, pin_memory=pin_memory)
    return itertools.cycle([pool.view(number) for number in range(SYNTHETIC_NUM_BATCHES)])


def open_user_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[Batch]:
    """`SYNTHETIC_NUM_BATCHES` batches of the user's model in turn, for ever."""
    batches = make_user_batches(case, count=SYNTHETIC_NUM_BATCHES, generator=make_generator(case.seed, "batches", rank))
    if pin_memory:
        batches = [(inputs.pin_memory(), targets.pin_memory()) for inputs, targets in batches]
    return itertools.cycle(batches)


class _Pool(Dataset[Batch]):
    def __init__(self, case: BenchCase, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets
        self._stride, self._size = synthetic_stride(case), case.per_device_batch_size

    def view(self, number: int) -> Batch:
        batch = slice(number * self._stride, number * self._stride + self._size)
        return self._inputs[batch], self._targets[batch]

    def __getitem__(self, number: int) -> Batch:
        inputs, targets = self.view(number)
        return inputs.clone(), targets.clone()  # a worker would send a view's whole pool


def _make_images(case: BenchCase, *, rank: int, pin_memory: bool) -> tuple[Tensor, Tensor]:
    """fp32 [N, 3, H, W], unit noise plus the pattern of the image's class, and int64 [N] classes."""
    assert case.image_size_px is not None
    num_samples, size = synthetic_pool_samples(case), case.image_size_px
    patterns = torch.randn(SYNTHETIC_NUM_CLASSES, 3, _PATTERN_SIZE_PX, _PATTERN_SIZE_PX, generator=make_generator(case.seed, "patterns"))
    patterns = F.interpolate(patterns, size=(size, size), mode="bilinear")
    generator = make_generator(case.seed, "images", rank)
    labels = torch.empty(num_samples, dtype=torch.int64, pin_memory=pin_memory).random_(0, SYNTHETIC_NUM_CLASSES, generator=generator)
    images = torch.empty(num_samples, 3, size, size, pin_memory=pin_memory).normal_(generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image += patterns[label]
    return images, labels


def _make_tokens(case: BenchCase, *, rank: int, pin_memory: bool) -> tuple[Tensor, Tensor]:
    """int64 [N, T] tokens of a Markov chain over part of the vocabulary, and int64 [N, T] the token after each."""
    assert case.sequence_length is not None
    vocab_size = find_model(case.model, workload=case.workload).vocab_size
    assert vocab_size is not None
    num_samples, length = synthetic_pool_samples(case), case.sequence_length
    language = make_generator(case.seed, "language")
    alphabet = torch.randperm(vocab_size, generator=language)[:_ALPHABET_SIZE]
    successors = torch.randint(_ALPHABET_SIZE, (_ALPHABET_SIZE, _NUM_SUCCESSORS), generator=language)

    generator = make_generator(case.seed, "tokens", rank)
    choices = torch.randint(_NUM_SUCCESSORS, (length, num_samples), generator=generator)
    states = [torch.randint(_ALPHABET_SIZE, (num_samples,), generator=generator)]
    for choice in choices:
        states.append(successors[states[-1], choice])
    samples = alphabet[torch.stack(states, dim=1)]  # [N, T + 1]
    tokens, targets = samples[:, :-1].contiguous(), samples[:, 1:].contiguous()
    return (tokens.pin_memory(), targets.pin_memory()) if pin_memory else (tokens, targets)
