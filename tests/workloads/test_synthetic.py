"""Synthetic batches: distinct, repeatable, of bounded size, different on each rank and with something to learn in them."""

from __future__ import annotations

import itertools

import pytest
import torch

from gpualloc.records import BenchCase
from gpualloc.workloads import data as data_module
from gpualloc.workloads import describe_data, open_batches
from tests.workloads.cases import image_case, llm_case

NUM_BATCHES = data_module.SYNTHETIC_NUM_BATCHES


def take(case: BenchCase, count: int, *, rank: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(itertools.islice(open_batches(case, rank=rank, pin_memory=False), count))


@pytest.mark.parametrize("case", [image_case(world_size=2), llm_case(world_size=2)], ids=["image", "llm"])
def test_batches_are_distinct_repeat_and_differ_by_rank_and_seed(case: BenchCase) -> None:
    batches = take(case, NUM_BATCHES + 1)
    others = take(case, NUM_BATCHES, rank=1) + take(type(case)(**{**vars(case), "seed": 1}), NUM_BATCHES)
    everything = [inputs for inputs, _ in batches[:-1] + others]
    assert NUM_BATCHES >= 4
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(everything, 2))
    assert torch.equal(batches[0][0], batches[NUM_BATCHES][0])
    for (inputs, targets), (inputs_again, targets_again) in zip(batches, take(case, NUM_BATCHES + 1), strict=True):
        assert torch.equal(inputs, inputs_again)
        assert torch.equal(targets, targets_again)


def test_image_shapes_and_ranges() -> None:
    for images, labels in take(image_case(image_size_px=40), NUM_BATCHES):
        assert images.shape == (4, 3, 40, 40)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert images.std(dim=(1, 2, 3)).min() > 0.5
        assert labels.shape == (4,)
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < 10


def test_all_ranks_see_the_same_language() -> None:
    """At most 64 tokens, each followed by at most 4 others, over both ranks together."""
    successors: dict[int, set[int]] = {}
    for rank in range(2):
        for tokens, targets in take(llm_case(world_size=2, sequence_length=200), NUM_BATCHES, rank=rank):
            assert tokens.shape == targets.shape == (2, 200)
            assert tokens.dtype == targets.dtype == torch.int64
            assert tokens.is_contiguous()
            assert targets.is_contiguous()
            assert torch.equal(tokens[:, 1:], targets[:, :-1])
            for token, target in zip(tokens.flatten().tolist(), targets.flatten().tolist(), strict=True):
                successors.setdefault(token, set()).add(target)
    assert 10 < len(successors) <= 64
    assert max(map(len, successors.values())) <= 4
    assert max(successors) < 256


def test_a_larger_vocabulary_is_used() -> None:
    tokens = torch.cat([tokens for tokens, _ in take(llm_case(model="gpt2", sequence_length=64), NUM_BATCHES)])
    assert 256 < tokens.max() < 50257


@pytest.mark.parametrize(("batch_size", "image_size_px"), [(1, 32), (64, 224), (64, 500), (2000, 500)])
def test_the_pool_is_bounded(batch_size: int, image_size_px: int) -> None:
    case = image_case(per_device_batch_size=batch_size, image_size_px=image_size_px)
    image_bytes = 3 * image_size_px**2 * 4
    limit_bytes = max(256 * 2**20, (batch_size + NUM_BATCHES) * image_bytes)
    assert batch_size < data_module.synthetic_pool_samples(case) <= limit_bytes // image_bytes


def test_batches_of_a_tight_pool_overlap_and_are_still_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_SYNTHETIC_POOL_BYTES", 3 * 32 * 32 * 4 * 5)
    batches = [images for images, _ in take(image_case(), NUM_BATCHES)]
    assert all(len(images) == 4 for images in batches)
    assert torch.equal(batches[0][1:], batches[1][:-1])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(batches, 2))


def test_description() -> None:
    info = describe_data(image_case(world_size=2))
    assert (info.num_classes, info.num_samples) == (1000, 64)
    assert info.description == "synthetic, 32 images per rank, 1000 classes"
    info = describe_data(llm_case(world_size=2))
    assert (info.num_classes, info.num_samples) == (256, 32)
    assert info.description == "synthetic, 16 sequences per rank"
