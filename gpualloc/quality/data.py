"""Real data that is always at hand, in a part to train on and a part held out; the split is the same for every seed.

Images: scikit-learn's 1,797 digits, a third of them held out. Text: the Python reference that `pydoc` shows, every tenth
block of it held out.
All of it is on the device from the start: reading is not what is measured.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpualloc.errors import UsageError
from gpualloc.records import BenchCase
from gpualloc.workloads.images import Digits
from gpualloc.workloads.seeds import make_generator

_TEST_FRACTION_OF_IMAGES = 3  # one in three
_TEST_FRACTION_OF_TEXT = 10  # one block in ten, so that both parts are of all subjects
_BLOCK_BYTES = 4096
_TEST_WINDOWS = 64  # of text, spread over the held-out blocks laid end to end
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """What a rank trains on, endlessly, and what all ranks are tested on."""

    train: Iterator[tuple[Tensor, Tensor]]
    test: tuple[Tensor, Tensor]


def open_split(case: BenchCase, *, rank: int, device: torch.device) -> Split:
    """The data of a rank: the ranks' batches of an epoch of images do not overlap; those of text are random windows.

    Raises:
        UsageError: too few samples for one batch on every rank.
    """
    return _split_digits(case, rank, device) if case.workload == "image" else _split_text(case, rank, device)


def _split_digits(case: BenchCase, rank: int, device: torch.device) -> Split:
    assert case.image_size_px is not None
    digits = Digits(image_size_px=case.image_size_px)
    order = torch.randperm(len(digits), generator=make_generator(_SPLIT_SEED, "split")).tolist()
    num_test = len(digits) // _TEST_FRACTION_OF_IMAGES
    test, (images, labels) = digits[order[:num_test]], digits[order[num_test:]]
    per_step = case.world_size * case.per_device_batch_size
    if per_step > len(labels):
        raise UsageError(f"one step takes {per_step} digits and {len(labels)} are there to train on; lower --batch-size")
    images, labels = images.to(device), labels.to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = make_generator(case.seed, "order")  # the same on every rank
        while True:
            shuffled = torch.randperm(len(labels), generator=generator).to(device)
            for start in range(0, len(labels) - per_step + 1, per_step):
                mine = shuffled[start + rank * case.per_device_batch_size :][: case.per_device_batch_size]
                yield images[mine], labels[mine]

    return Split(train=batches(), test=(test[0].to(device), test[1].to(device)))


def _split_text(case: BenchCase, rank: int, device: torch.device) -> Split:
    assert case.sequence_length is not None
    text = torch.frombuffer(bytearray(_read_topics().encode()), dtype=torch.uint8)
    blocks = text[: len(text) // _BLOCK_BYTES * _BLOCK_BYTES].view(-1, _BLOCK_BYTES)
    is_test = torch.arange(len(blocks)) % _TEST_FRACTION_OF_TEXT == _TEST_FRACTION_OF_TEXT - 1
    length, num_test = case.sequence_length + 1, int(is_test.sum()) * _BLOCK_BYTES
    if num_test < length:
        raise UsageError(f"--sequence-length {case.sequence_length} is longer than the {num_test} bytes of held-out text; lower it")
    train, held_out = (blocks[mask].flatten().unfold(0, length, 1) for mask in (~is_test, is_test))
    starts = torch.linspace(0, len(held_out) - 1, _TEST_WINDOWS).long()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = make_generator(case.seed, "windows", rank)
        while True:
            yield _tokens_and_targets(train[torch.randint(len(train), (case.per_device_batch_size,), generator=generator)], device)

    return Split(train=batches(), test=_tokens_and_targets(held_out[starts], device))


def _read_topics() -> str:
    """Each paragraph once: topics repeat each other's, and half of what is held out would be trained on."""
    topics = pydoc_data.topics.topics
    paragraphs = [paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n")]
    return "\n\n".join({" ".join(paragraph.split()): paragraph for paragraph in paragraphs}.values())


def _tokens_and_targets(windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    windows = windows.to(device).long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
