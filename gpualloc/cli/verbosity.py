"""Less and more on stderr, for all commands alike."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

_KEPT = "gpualloc: "  # what errors and warnings of ours begin with


class _QuietStream:
    """stderr without its progress: only lines that begin as ours do, and usage errors, which come after the command was left."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith(_KEPT):
                self._stream.write(line + "\n")
        return len(text)

    def isatty(self) -> bool:
        return False  # nothing that draws is seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def be_quiet(root: Any) -> None:
    """Until the root context closes."""
    if root.meta.setdefault("gpualloc.quiet", False):
        return
    root.meta["gpualloc.quiet"] = True
    stream = sys.stderr
    sys.stderr = _QuietStream(stream)  # type: ignore[assignment]

    def restore() -> None:
        sys.stderr = stream

    root.call_on_close(restore)


def be_verbose(root: Any) -> None:
    """At the end tells what was set by files and variables, and how long it took."""
    if root.meta.setdefault("gpualloc.verbose", False):
        return
    root.meta["gpualloc.verbose"] = True
    started_s = time.monotonic()

    def tell() -> None:
        for line in root.meta.get("gpualloc.settings", []):
            print(f"gpualloc: setting {line}", file=sys.stderr)
        print(f"gpualloc: took {time.monotonic() - started_s:.1f} s", file=sys.stderr)

    root.call_on_close(tell)
