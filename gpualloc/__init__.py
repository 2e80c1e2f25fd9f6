"""Will more GPUs pay off for this training job? Measure, then decide.

Public names load on first use, so that `import gpualloc` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpualloc.comm import HookHandle as HookHandle
    from gpualloc.comm import register_comm_hook as register_comm_hook
    from gpualloc.errors import GpuallocError as GpuallocError

    __version__: str

_HOME_OF = {
    "GpuallocError": "gpualloc.errors",
    "HookHandle": "gpualloc.comm",
    "register_comm_hook": "gpualloc.comm",
}
_SUBMODULES = ("comm", "ops", "train")

__all__ = ["GpuallocError", "HookHandle", "comm", "ops", "register_comm_hook", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"gpualloc.{name}")
    if name == "__version__":
        return _installed_version()
    raise AttributeError(f"module 'gpualloc' has no attribute {name!r}")


def _installed_version() -> str:
    import importlib.metadata  # 20 ms that importing this need not wait

    try:
        return importlib.metadata.version("gpualloc")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def __dir__() -> list[str]:
    return __all__
