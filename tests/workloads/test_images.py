"""Digits and image folders: shapes, sharding, odd files, worker processes, and errors met while loading."""

from __future__ import annotations

import itertools
import os
import warnings
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.records import BenchCase
from gpualloc.workloads import describe_data, open_batches
from gpualloc.workloads.images import Digits, ImageFolder, choose_num_workers, load_image
from tests.workloads.cases import image_case, llm_case
from tests.workloads.conftest import save_noise


def draw_epochs(case: BenchCase, *, rank: int, batches_per_epoch: int, num_epochs: int) -> list[list[bytes]]:
    """Per epoch the samples a rank saw, in order, each as the bytes of its pixels."""
    batches = open_batches(case, rank=rank, pin_memory=False)
    return [
        [bytes(image.numpy().tobytes()) for pixels, _ in itertools.islice(batches, batches_per_epoch) for image in pixels]
        for _ in range(num_epochs)
    ]


def test_digits_shape_and_range() -> None:
    pixels, labels = next(open_batches(image_case(data="digits", image_size_px=48, per_device_batch_size=200), rank=0, pin_memory=False))
    assert pixels.shape == (200, 3, 48, 48)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))
    assert abs(pixels.mean()) < 0.1
    assert 0.7 < pixels.std() < 1.1  # 1 before enlarging, which smooths
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_digits_are_what_the_description_says() -> None:
    info = describe_data(image_case(data="digits"))
    digits = Digits(image_size_px=32)
    assert info.num_samples == len(digits)
    assert info.num_classes == len(set(digits[range(len(digits))][1].tolist()))
    assert info.description == "digits, 1,797 images, 10 classes"


def test_ranks_see_disjoint_samples_in_an_order_that_changes_with_the_epoch(image_root: Path) -> None:
    case = image_case(data=str(image_root), per_device_batch_size=3, world_size=2)  # 15 images: 7 per rank, 2 batches of 3
    ranks = [draw_epochs(case, rank=rank, batches_per_epoch=2, num_epochs=3) for rank in range(2)]
    for epoch in range(3):
        assert len(set(ranks[0][epoch] + ranks[1][epoch])) == 12
    assert len({tuple(epoch) for rank in ranks for epoch in rank}) == 6
    assert ranks[0] == draw_epochs(case, rank=0, batches_per_epoch=2, num_epochs=3)
    other_seed = image_case(data=str(image_root), per_device_batch_size=3, world_size=2, seed=1)
    assert ranks[0] != draw_epochs(other_seed, rank=0, batches_per_epoch=2, num_epochs=3)


def test_one_epoch_of_one_rank_is_every_image_with_its_class(image_root: Path) -> None:
    case = image_case(data=str(image_root), per_device_batch_size=5)
    batches = list(itertools.islice(open_batches(case, rank=0, pin_memory=False), 3))
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == [0] * 4 + [1] * 5 + [2] * 6
    assert batches[0][0].shape == (5, 3, 32, 32)
    assert batches[0][0].is_contiguous()
    line = ImageFolder(str(image_root), image_size_px=32)[[4]]
    assert not isinstance(line, GpuallocError)
    by_hand = load_image(str(image_root / "line" / "0.png"), image_size_px=32).float() / 255
    assert line[1].tolist() == [1]
    torch.testing.assert_close(line[0][0, 1], (by_hand[1] - 0.456) / 0.224)
    info = describe_data(case)
    assert (info.num_classes, info.num_samples, info.description) == (3, 15, "shapes, 15 images, 3 classes")


def test_the_loader_leaves_the_global_generator_alone(image_root: Path) -> None:
    state = torch.get_rng_state()
    next(open_batches(image_case(data=str(image_root)), rank=0, pin_memory=False))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("data", ["folder", "digits", "synthetic", "text", "tokens"])
def test_worker_processes_give_the_same_batches(image_root: Path, data: str) -> None:
    case = {
        "folder": image_case(data=str(image_root)),
        "digits": image_case(data="digits"),
        "synthetic": image_case(),
        "text": llm_case(data=__file__),
        "tokens": llm_case(),
    }[data]
    here = list(itertools.islice(open_batches(case, rank=0, pin_memory=False), 5))
    before = set(psutil.Process().children())
    batches = open_batches(replace(case, num_workers=2), rank=0, pin_memory=False)
    there = list(itertools.islice(batches, 5))
    assert len(set(psutil.Process().children()) - before) == 2
    for (pixels, labels), (worker_pixels, worker_labels) in zip(here, there, strict=True):
        assert torch.equal(pixels, worker_pixels)
        assert torch.equal(labels, worker_labels)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(image_root: Path, num_workers: int) -> None:
    damaged = image_root / "line" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])  # the header is whole
    batches = open_batches(image_case(data=str(image_root), per_device_batch_size=15, num_workers=num_workers), rank=0, pin_memory=False)
    with pytest.raises(GpuallocError) as caught:
        next(batches)
    assert str(caught.value).startswith(f"cannot read image '{damaged}': ")
    assert str(caught.value).endswith("; replace the file or remove it")
    assert "\n" not in str(caught.value)


def test_workers_share_the_cores_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    counts = [choose_num_workers(image_case(device="cuda", world_size=world_size)) for world_size in (1, 2, 4, 16, 64)]
    assert counts == [8, 7, 3, 0, 0]
    assert choose_num_workers(image_case(device="cpu")) == 0
    assert choose_num_workers(image_case(device="cuda", num_workers=3)) == 3
    assert choose_num_workers(image_case(device="cuda", num_workers=0)) == 0


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 40), (10, 20, 30)),
        ("L", 70, (70, 70, 70)),
        ("LA", (70, 9), (70, 70, 70)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 40_000, (156, 156, 156)),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1, 3000), (100, 64)])
def test_any_colour_mode_and_size(tmp_path: Path, mode: str, color: int | tuple[int, ...], expected: tuple[int, ...], size) -> None:
    path = str(tmp_path / "image.png")
    Image.new(mode, size, color).save(path)
    pixels = load_image(path, image_size_px=32)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.tensor(expected, dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "image.png", transparency=b"\x00\x10")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_image(str(tmp_path / "image.png"), image_size_px=32)
    assert pixels[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_an_image_is_resized_by_its_shorter_side_and_its_centre_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "oblong.png"
    save_noise(path, seed=0, size=size)
    width, height = size[0] // 2, size[1] // 2
    left, top = (width - 50) // 2, (height - 50) // 2
    expected = Image.open(path).resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 50, top + 50))
    assert bytes(load_image(str(path), image_size_px=50).permute(1, 2, 0).flatten().tolist()) == expected.tobytes()


def test_other_decoders_are_never_run(tmp_path: Path) -> None:
    """Pillow goes by content, and its EPS reader would start ghostscript."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.eps")
    (tmp_path / "image.eps").rename(tmp_path / "image.png")
    with pytest.raises(OSError, match="cannot identify"):
        load_image(str(tmp_path / "image.png"), image_size_px=32)


def test_hidden_files_loops_and_odd_names(image_root: Path) -> None:
    save_noise(image_root / ".hidden.png", seed=0)
    save_noise(image_root / "line" / ".hidden.png", seed=0)
    (image_root / ".git").mkdir()
    (image_root / "line" / "notes.txt").write_text("not an image")
    (image_root / "line" / "folder.png").mkdir()
    (image_root / "line" / "loop.png").symlink_to("loop.png")
    (image_root / "line" / "nowhere.png").symlink_to("gone.png")
    (image_root / "loop").symlink_to("loop")
    os.rename(os.fsencode(image_root / "line" / "0.png"), os.fsencode(image_root / "line") + b"/\xff\n.png")
    os.rename(os.fsencode(image_root), os.fsencode(image_root) + b"\xff")
    root = os.fsdecode(os.fsencode(image_root) + b"\xff")
    info = describe_data(image_case(data=root))
    assert (info.num_samples, info.description) == (15, "shapes?, 15 images, 3 classes")
    pixels, _ = next(open_batches(image_case(data=root, per_device_batch_size=15), rank=0, pin_memory=False))
    assert len({bytes(image.numpy().tobytes()) for image in pixels}) == 15


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_too_few_samples_are_refused_when_opened(data: str, image_root: Path) -> None:
    case = image_case(data="digits" if data == "digits" else str(image_root), per_device_batch_size=900, world_size=2)
    with pytest.raises(UsageError, match="takes 1800; lower either"):
        open_batches(case, rank=0, pin_memory=False)
