"""Files that are written whole: a reader sees the old one or the new one, and a crash or a full disk leaves the old one.

What is being written has a name that nobody can foresee and is never opened through a link, so that in a folder that others may write
to, no file of another place is overwritten. A link at the path itself is replaced, not followed; a device or pipe is written to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, and is gone where it raises. Its mode is that of the umask.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.unfinished")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as made:
            yield made
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def write_whole(path: Path, text: str | bytes) -> None:
    """Raises:
    OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)
