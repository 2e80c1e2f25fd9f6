"""What data a case trains on: described and checked without torch, so that a refusal comes before any process starts."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from gpualloc.errors import UsageError
from gpualloc.records import BenchCase
from gpualloc.workloads.files import check_image_headers, find_images, find_texts, missing_package
from gpualloc.workloads.models import find_model

SYNTHETIC_NUM_CLASSES = 10  # that occur; the model keeps ImageNet's 1000 outputs, so that its gradient has the size it is known by
IMAGENET_NUM_CLASSES = 1000
SYNTHETIC_NUM_BATCHES = 8  # distinct ones per rank, used in turn
_SYNTHETIC_POOL_BYTES = 256 * 2**20  # per rank; where one batch is larger than that, one batch and a few samples
_DIGITS_NUM_SAMPLES = 1797  # of sklearn.datasets.load_digits
_DIGITS_NUM_CLASSES = 10
_IMAGE_SIZES_PX = (32, 4096)  # from what MobileNetV2's five halvings need to what is not yet a slip of the hand
_SEQUENCE_LENGTHS = (1, 2**17)
_MAX_HEADERS_CHECKED = 64  # images, spread over the folder


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """The data of a case."""

    num_classes: int | None  # classes of images, or the model's vocabulary; None: the user's model knows
    num_samples: int  # over all ranks: images, or windows of sequence_length + 1 tokens that do not overlap
    description: str  # for tables


def describe_data(case: BenchCase) -> DataInfo:
    """What the case trains on.

    Raises:
        UsageError: a path cannot be read, or the model is unknown.
    """
    spec = find_model(case.model, workload=case.workload)
    if spec.is_user_model:
        if case.data != "synthetic":
            raise UsageError(f"model {case.model!r} makes its own batches and the data is {case.data!r}; leave the data out")
        num_samples = SYNTHETIC_NUM_BATCHES * case.per_device_batch_size * case.world_size
        return DataInfo(num_classes=None, num_samples=num_samples, description=f"made by {case.model}")
    if spec.vocab_size is not None:
        if case.data == "synthetic":
            per_rank = synthetic_pool_samples(case)
            num_samples, description = per_rank * case.world_size, f"synthetic, {per_rank:,} sequences per rank"
        else:
            num_samples = _count_windows(case.data, sequence_length=case.sequence_length)
            description = f"{_last_name(case.data)}, {num_samples:,} windows of {case.sequence_length} tokens"
        return DataInfo(num_classes=spec.vocab_size, num_samples=num_samples, description=description)

    if case.data == "synthetic":
        per_rank, num_classes = synthetic_pool_samples(case), IMAGENET_NUM_CLASSES
        num_samples, images = per_rank * case.world_size, f"synthetic, {per_rank:,} images per rank"
    elif case.data == "digits":
        num_samples, num_classes = _DIGITS_NUM_SAMPLES, _DIGITS_NUM_CLASSES
        images = f"digits, {num_samples:,} images"
    else:
        classes = find_images(case.data)
        num_samples, num_classes = sum(map(len, classes.values())), len(classes)
        images = f"{_last_name(case.data)}, {num_samples:,} images"
    return DataInfo(num_classes=num_classes, num_samples=num_samples, description=f"{images}, {num_classes} classes")


def check_data(
    data: str,
    workload: str,
    *,
    per_device_batch_size: int,
    world_size: int,
    image_size_px: int | None,
    sequence_length: int | None,
) -> None:
    """Refuses data that a case with these figures could not train on. Of image files a sample of the headers is read.

    Raises:
        UsageError: naming what is wrong and what is allowed.
    """
    if workload not in ("image", "llm"):
        raise UsageError(f"workload {workload!r} is unknown; choose image or llm")
    _require_range("per_device_batch_size", per_device_batch_size, (1, None))
    _require_range("world_size", world_size, (1, None))
    if workload == "image":
        _require_range("image_size_px", image_size_px, _IMAGE_SIZES_PX)
        if image_size_px == _IMAGE_SIZES_PX[0] and per_device_batch_size == 1:
            raise UsageError(
                f"batch normalisation cannot train on 1 image of {image_size_px} px, which leaves it one value per channel; "
                "use per_device_batch_size 2 or larger images"
            )
    else:
        _require_range("sequence_length", sequence_length, _SEQUENCE_LENGTHS)

    if data == "synthetic":
        return
    if data == "digits":
        if workload != "image":
            raise UsageError("data 'digits' is images and the workload is llm; use 'synthetic' or the path of a text file or folder")
        if importlib.util.find_spec("sklearn") is None:
            raise missing_package("scikit-learn")
        num_samples = _DIGITS_NUM_SAMPLES
    elif not os.path.exists(data):
        kinds = "'synthetic', 'digits' or a path" if workload == "image" else "'synthetic' or a path"
        raise UsageError(f"data {data!r} does not exist; give {kinds} that does")
    elif workload == "image":
        images = [path for paths in find_images(data).values() for path in paths]
        check_image_headers(images[:: -(-len(images) // _MAX_HEADERS_CHECKED)])
        num_samples = len(images)
    else:
        num_samples = _count_windows(data, sequence_length=sequence_length)
    require_samples(num_samples, per_device_batch_size=per_device_batch_size, world_size=world_size)


def require_samples(num_samples: int, *, per_device_batch_size: int, world_size: int) -> None:
    """Refuses data too small to give every rank one full batch.

    Raises:
        UsageError: with the numbers.
    """
    if num_samples < world_size * per_device_batch_size:
        raise UsageError(
            f"the data holds {num_samples} samples and one step of {world_size} ranks with per_device_batch_size {per_device_batch_size} "
            f"takes {world_size * per_device_batch_size}; lower either until their product is {num_samples} or less, or use more data"
        )


def synthetic_pool_samples(case: BenchCase) -> int:
    """How many samples a rank generates: batch i of the pool starts at sample i * `synthetic_stride`."""
    return case.per_device_batch_size + (SYNTHETIC_NUM_BATCHES - 1) * synthetic_stride(case)


def synthetic_stride(case: BenchCase) -> int:
    """Samples from the start of one synthetic batch to the next: a whole batch, or less where the pool would grow too large."""
    if case.workload == "image":
        assert case.image_size_px is not None
        sample_bytes = 3 * case.image_size_px**2 * 4  # fp32
    else:
        assert case.sequence_length is not None
        sample_bytes = 2 * case.sequence_length * 8  # int64 tokens and targets
    spare_samples = _SYNTHETIC_POOL_BYTES // sample_bytes - case.per_device_batch_size
    return max(1, min(case.per_device_batch_size, spare_samples // (SYNTHETIC_NUM_BATCHES - 1)))


def _require_range(name: str, value: int | None, limits: tuple[int, int | None]) -> None:
    low, high = limits
    if value is None or value < low or (high is not None and value > high):
        raise UsageError(f"{name} is {value}; choose {low} or more" + (f", up to {high}" if high is not None else ""))


def _count_windows(root: str, *, sequence_length: int | None) -> int:
    assert sequence_length is not None
    num_bytes = sum(size_bytes for _, size_bytes in find_texts(root))
    if num_bytes <= sequence_length:
        raise UsageError(
            f"text data {root!r} holds {num_bytes} bytes and one sample takes {sequence_length + 1}; lower sequence_length or use more text"
        )
    return num_bytes // (sequence_length + 1)


def _last_name(path: str) -> str:
    name = os.path.basename(os.path.abspath(path))
    return "".join(c if c.isprintable() else "?" for c in name)  # "?" also for bytes that are not UTF-8
