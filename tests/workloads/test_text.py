"""Text: shards that do not overlap, windows that are what the file says, and files met in folders."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.workloads import describe_data, open_batches
from gpualloc.workloads.files import find_texts
from gpualloc.workloads.text import read_shard
from tests.workloads.cases import llm_case


@pytest.fixture
def counting_text(tmp_path: Path) -> Path:
    """1000 bytes whose value is their position modulo 250."""
    path = tmp_path / "count.txt"
    path.write_bytes(bytes(i % 250 for i in range(1000)))
    return path


def test_windows_are_stretches_of_the_text(counting_text: Path) -> None:
    case = llm_case(data=str(counting_text), per_device_batch_size=5)
    for tokens, targets in itertools.islice(open_batches(case, rank=0, pin_memory=False), 20):
        assert tokens.shape == targets.shape == (5, 16)
        assert tokens.dtype == targets.dtype == torch.int64
        assert tokens.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal((tokens + 1) % 250, targets)
        assert torch.equal((tokens[:, :-1] + 1) % 250, tokens[:, 1:])


def test_every_start_can_be_drawn_and_ranks_never_share_text(tmp_path: Path) -> None:
    """Bytes are their own positions: rank 0 reads 0 to 99 and rank 1 100 to 199, to the very ends."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(201)))
    case = llm_case(data=str(path), world_size=2)
    for rank in range(2):
        batches = list(itertools.islice(open_batches(case, rank=rank, pin_memory=False), 500))
        assert min(int(tokens.min()) for tokens, _ in batches) == 100 * rank
        assert max(int(targets.max()) for _, targets in batches) == 100 * rank + 99


def test_batches_repeat_by_seed_and_move_on(counting_text: Path) -> None:
    def draw(seed: int) -> list[list[list[int]]]:
        batches = open_batches(llm_case(data=str(counting_text), seed=seed), rank=0, pin_memory=False)
        return [tokens.tolist() for tokens, _ in itertools.islice(batches, 4)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(0)[0] != draw(0)[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_laid_end_to_end_are_the_files(tmp_path: Path, world_size: int) -> None:
    contents = [b"abcdefgh", b"", b"ij", b"klmnopqrstuvwxyz"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.txt").write_bytes(content)
    files = find_texts(str(tmp_path))
    shards = [bytes(read_shard(files, rank=rank, world_size=world_size).tolist()) for rank in range(world_size)]
    whole = b"".join(contents)
    assert {len(shard) for shard in shards} == {len(whole) // world_size}
    assert b"".join(shards) == whole[: len(whole) // world_size * world_size]


def test_files_below_a_folder(tmp_path: Path) -> None:
    """Sorted, nested, by ending; hidden ones, loops and other files left out; a name that is not UTF-8 is no obstacle."""
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name in ("b/2.md", "1.txt", "b/3.PY", "4.bin", ".hidden.txt", "b/.git/5.txt"):
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as file:
        file.write(b"odd")
    found = find_texts(str(tmp_path))
    assert [(os.path.relpath(path, tmp_path), size_bytes) for path, size_bytes in found] == [
        ("1.txt", 4),
        ("b/2.md", 4),
        ("b/3.PY", 4),
        ("\udcff.txt", 3),
    ]
    assert len(read_shard(found, rank=0, world_size=1)) == 15


def test_description(counting_text: Path) -> None:
    info = describe_data(llm_case(data=str(counting_text)))
    assert (info.num_classes, info.num_samples) == (256, 58)
    assert info.description == "count.txt, 58 windows of 16 tokens"


def test_too_little_text_for_the_ranks_is_refused_when_opened(counting_text: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 58 samples .* takes 60; lower either until their product is 58"):
        open_batches(llm_case(data=str(counting_text), per_device_batch_size=20, world_size=3), rank=0, pin_memory=False)


def test_the_smallest_text_that_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(2 * 3 * 17))
    for rank in range(2):
        case = llm_case(data=str(path), per_device_batch_size=3, world_size=2)
        assert next(open_batches(case, rank=rank, pin_memory=False))[0].shape == (3, 16)


def test_a_file_that_vanished_or_shrank_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"short")
    with pytest.raises(GpuallocError, match=rf"text '{path}' shrank"):
        read_shard([(str(path), 6)], rank=0, world_size=1)
    path.unlink()
    with pytest.raises(GpuallocError, match=rf"cannot read text '{path}': No such file or directory; check"):
        read_shard([(str(path), 5)], rank=0, world_size=1)
