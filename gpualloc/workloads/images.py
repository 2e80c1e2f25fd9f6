"""Image data read through a torch DataLoader: scikit-learn's digits, or a folder of class/image files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, DistributedSampler

from gpualloc.errors import GpuallocError
from gpualloc.records import BenchCase
from gpualloc.workloads.data import require_samples
from gpualloc.workloads.files import IMAGE_FORMATS, describe_unreadable_image, find_images, missing_package
from gpualloc.workloads.loading import Batch, read_batches
from gpualloc.workloads.seeds import derive_seed

# Per-channel mean and standard deviation of ImageNet, the usual normalisation (torchvision's models page).
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_MAX_WORKERS = 8  # per rank


class Digits(Dataset[Batch]):
    """1797 handwritten digits of 8x8 gray pixels, enlarged to three equal channels of mean 0 and deviation 1."""

    def __init__(self, *, image_size_px: int) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise missing_package("scikit-learn") from error
        digits = load_digits()
        images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1)
        self._images = (images - images.mean()) / images.std()
        self._labels = torch.as_tensor(digits.target, dtype=torch.int64)
        self._image_size_px = image_size_px

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        images = F.interpolate(self._images[indices], size=(self._image_size_px, self._image_size_px), mode="bilinear")
        return images.repeat(1, 3, 1, 1), self._labels[indices]


class ImageFolder(Dataset[Batch | GpuallocError]):
    """The images of a class/image folder; class numbers follow the sorted folder names."""

    def __init__(self, root: str, *, image_size_px: int) -> None:
        try:
            importlib.import_module("PIL.Image")  # here rather than in a worker process at the first image
        except ImportError as error:
            raise missing_package("Pillow") from error
        classes = find_images(root)
        self._files = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
        self._image_size_px = image_size_px

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, indices: Sequence[int]) -> Batch | GpuallocError:
        """The batch, or the error to raise: raised in a worker process it would arrive with a traceback for a message."""
        images = []
        for path, _ in (self._files[i] for i in indices):
            try:
                images.append(load_image(path, image_size_px=self._image_size_px))
            except Exception as error:  # decoders of hostile files raise almost anything
                return GpuallocError(describe_unreadable_image(path, error))
        pixels = (torch.stack(images).float() / 255 - _MEAN) / _STD
        return pixels.contiguous(), torch.tensor([self._files[i][1] for i in indices])


def load_image(path: str, *, image_size_px: int) -> Tensor:
    """uint8 [3, S, S]: the centre square of the image, resized; of any colour mode and size. Transparency is dropped."""
    from PIL import Image

    with Image.open(path, formats=IMAGE_FORMATS) as image:
        if image.mode.startswith("I"):  # 16 bits of gray, which convert() would clip rather than scale
            image = image.point(lambda value: value * (1 / 256)).convert("L")
        elif image.mode == "P":
            image = image.convert("RGBA")  # knows the palette's transparency, of which "RGB" warns
        image = image.convert("RGB")
        # Cropping within the resize equals resizing the shorter side first, and a 1 x 100000 image stays small.
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        square = image.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR, box=box)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(image_size_px, image_size_px, 3).permute(2, 0, 1)


def open_image_batches(case: BenchCase, *, rank: int, pin_memory: bool) -> Iterator[Batch]:
    """Batches of the case's data for one rank, epoch after epoch, each in a new order.

    Raises:
        UsageError: when opened, if the data cannot be used.
        GpuallocError: from the iterator, naming a file that cannot be decoded.
    """
    assert case.image_size_px is not None
    dataset: Digits | ImageFolder
    if case.data == "digits":
        dataset = Digits(image_size_px=case.image_size_px)
    else:
        dataset = ImageFolder(case.data, image_size_px=case.image_size_px)
    require_samples(len(dataset), per_device_batch_size=case.per_device_batch_size, world_size=case.world_size)
    sampler: DistributedSampler[int] = DistributedSampler(
        dataset,
        num_replicas=case.world_size,
        rank=rank,
        seed=derive_seed(case.seed, "order"),
        drop_last=True,
    )
    batches = EndlessBatches(sampler, batch_size=case.per_device_batch_size)
    return read_batches(dataset, batches, case, rank=rank, num_workers=choose_num_workers(case), pin_memory=pin_memory)


class EndlessBatches:
    """The batches of indices of all epochs in one run, so that workers read ahead across the end of an epoch."""

    def __init__(self, sampler: DistributedSampler[int], *, batch_size: int) -> None:
        self._sampler = sampler
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch = 0
        while True:
            self._sampler.set_epoch(epoch)
            yield from BatchSampler(self._sampler, self._batch_size, drop_last=True)
            epoch += 1


def choose_num_workers(case: BenchCase) -> int:
    """Reader processes per rank: the case's, else on a GPU machine the cores are shared among the ranks and each training loop keeps one.

    On a CPU there are none: training uses every core already, and readers would slow down what is being measured.
    """
    if case.num_workers is not None:
        return case.num_workers
    if case.device == "cpu":
        return 0
    ranks_here = min(case.world_size, case.gpus_per_node or case.world_size)
    return max(0, min(_MAX_WORKERS, count_cores() // ranks_here - 1))


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
