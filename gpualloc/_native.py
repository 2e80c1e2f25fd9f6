"""Loads the compiled extension once and keeps the reason when it cannot be used."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from gpualloc.errors import NativeUnavailableError

_INFO_FILE = Path(__file__).with_name("_build_info.json")
_REBUILD = "rebuild it against the torch you have: pip install --force-reinstall --no-deps ."


@dataclass(frozen=True)
class NativeBuild:
    """What the compiled extension was built for, and whether it can be used here."""

    available: bool
    reason: str | None  # why it cannot be used
    built_for_torch: str | None
    built_for_cuda: str | None  # None: the CPU half only
    cuda_archs: tuple[str, ...]  # compute capabilities such as "90"
    cuda_skipped: str | None  # why a CUDA torch got the CPU half only
    cpu_isa: str | None  # "avx512", "avx2" or "scalar"; None before it is loaded


@cache
def _build_info() -> dict[str, object] | None:
    try:
        info: dict[str, object] = json.loads(_INFO_FILE.read_text())
        return info
    except (OSError, ValueError):
        return None


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """(module, None), or (None, why it cannot be used)."""
    info = _build_info()
    if info is None:
        return (
            None,
            f"there is no compiled extension in {_INFO_FILE.parent}; build it with: pip install . (in a source tree: pip install -e .)",
        )
    try:
        import torch
    except (ImportError, OSError) as error:
        return None, f"torch cannot be imported ({error}); install torch {info['torch']}"
    # A module built for another torch imports and then fails oddly, so it is not even tried.
    if torch.__version__.split("+")[0] != str(info["torch"]).split("+")[0]:
        return None, f"the compiled extension was built for torch {info['torch']}, found torch {torch.__version__}; {_REBUILD}"
    if info["cuda"] is not None and _major(info["cuda"]) != _major(torch.version.cuda):
        found = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return None, f"the compiled extension was built for CUDA {info['cuda']}, torch {torch.__version__} has {found}; {_REBUILD}"
    try:
        return importlib.import_module("gpualloc._C"), None
    except ImportError as error:
        return None, f"the compiled extension does not load ({error}); {_REBUILD}"


def _major(version: object) -> str:
    return str(version).split(".")[0]


def describe(load: bool = True) -> NativeBuild:
    """What was built, for what. With `load=False` torch is not imported and only the build's own record is read."""
    info = _build_info() or {}
    module, reason = _load() if load else (None, None if info else _load()[1])
    return NativeBuild(
        available=module is not None if load else bool(info),
        reason=reason,
        built_for_torch=str(info["torch"]) if info else None,
        built_for_cuda=str(info["cuda"]) if info.get("cuda") else None,
        cuda_archs=tuple(info.get("cuda_archs", ())),  # type: ignore[arg-type]
        cuda_skipped=str(info["cuda_skipped"]) if info.get("cuda_skipped") else None,
        cpu_isa=module.cpu_isa if module is not None else None,
    )


def module() -> ModuleType:
    """The compiled module.

    Raises:
        NativeUnavailableError: it cannot be used here; says why and how to build it.
    """
    loaded, reason = _load()
    if loaded is None:
        raise NativeUnavailableError(str(reason))
    return loaded


@cache
def available_or_warn() -> bool:
    """Whether the extension can be used; warns the first time that it cannot."""
    loaded, reason = _load()
    if loaded is None:
        warnings.warn(f"gpualloc uses its slower Python hooks: {reason}", RuntimeWarning, stacklevel=3)
    return loaded is not None
