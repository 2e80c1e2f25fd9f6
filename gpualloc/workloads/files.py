"""Finding image and text files in folders whose contents cannot be trusted: loops, dead links, odd names, hidden files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import NoReturn

from gpualloc.errors import UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # Pillow's names; whatever a file calls itself, no other decoder is run on it
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".html", ".py", ".c", ".cpp", ".cu", ".h", ".go", ".java", ".js", ".rs", ".sh")


def find_images(root: str) -> dict[str, list[str]]:
    """Class name -> paths of its images, both sorted, for a folder laid out as class/image.

    Raises:
        UsageError: `root` is no such folder, or a class has no image.
    """
    if not os.path.isdir(root):
        raise UsageError(f"image data {root!r} is not a folder; images are read from a folder of class folders (class/image.jpg)")
    classes = {}
    for folder in _list_folder(root)[1]:
        images = [path for path in _list_folder(folder)[0] if path.lower().endswith(IMAGE_SUFFIXES)]
        if not images:
            raise UsageError(f"class folder {folder!r} holds no image ({', '.join(IMAGE_SUFFIXES)}); put images in it or remove the folder")
        classes[os.path.basename(folder)] = images
    if len(classes) < 2:
        raise UsageError(
            f"image data {root!r} has {len(classes)} class folders and learning to tell classes apart takes 2; "
            "put the images of each class in a folder of their own"
        )
    return classes


def check_image_headers(paths: Iterable[str]) -> None:
    """Opens each image without decoding its pixels.

    Raises:
        UsageError: Pillow is missing, or a file is not an image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("Pillow") from error
    for path in paths:
        try:
            Image.open(path, formats=IMAGE_FORMATS).close()
        except Exception as error:  # decoders of hostile files raise almost anything
            raise UsageError(describe_unreadable_image(path, error)) from error


def describe_unreadable_image(path: str, error: Exception) -> str:
    """The message for an image that cannot be decoded, or turned into pixels."""
    if type(error).__name__ == "UnidentifiedImageError":
        reason = f"it is not {', '.join(IMAGE_FORMATS)}"
    else:
        reason = getattr(error, "strerror", None) or f"{error}"
    return f"cannot read image {path!r}: {reason}; replace the file or remove it"


def find_texts(root: str) -> list[tuple[str, int]]:
    """(path, size in bytes) of a text file, or of every text file below a folder, sorted; links to folders are not followed.

    Raises:
        UsageError: nothing is there to read.
    """
    if os.path.isfile(root):
        return [(root, os.path.getsize(root))]
    if not os.path.isdir(root):
        raise UsageError(f"text data {root!r} is neither a file nor a folder; name a text file or a folder of text files")
    texts = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and name.lower().endswith(TEXT_SUFFIXES) and os.path.isfile(path):
                texts.append((path, os.path.getsize(path)))
    if not texts:
        raise UsageError(f"text data {root!r} holds no text file; files with these endings are read: {', '.join(TEXT_SUFFIXES)}")
    return sorted(texts)


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the files and of the folders in a folder, sorted, without hidden ones and links that lead nowhere."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with contextlib.suppress(OSError):  # a link to itself
                    if entry.is_file():
                        files.append(entry.path)
                    elif entry.is_dir():
                        folders.append(entry.path)
    except OSError as error:
        _refuse_folder(error)
    return sorted(files), sorted(folders)


def _refuse_folder(error: OSError) -> NoReturn:
    raise UsageError(f"cannot list folder {error.filename!r}: {error.strerror}; check its permissions") from error


def missing_package(name: str) -> UsageError:
    """The refusal of data whose reader is not installed."""
    return UsageError(f"this data needs {name}, which cannot be imported here; run: pip install 'gpualloc[data]'")
