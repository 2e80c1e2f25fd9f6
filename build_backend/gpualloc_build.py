"""PEP 517 backend that builds against the torch already installed beside the package, instead of fetching another.

Under build isolation pip hides the target environment. The backend looks at it from a fresh interpreter, asks only for
the build tools missing there, appends the target's path, and leaves the rest to setuptools. With no torch at all it asks
for FALLBACK_TORCH ($GPUALLOC_BUILD_TORCH overrides it).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FALLBACK_TORCH = "2.13.0"
MIN_SETUPTOOLS = (70, 1)  # has bdist_wheel
MIN_CMAKE = (3, 22)

_PROBE = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"path": sys.path, **{name: version(name) for name in ("torch", "setuptools", "cmake", "ninja")}}))
"""


def _target() -> dict[str, Any]:
    """The target environment's path and the versions found there, as seen without pip's isolation."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    run = subprocess.run(
        [sys.executable, "-c", _PROBE], env=env, capture_output=True, text=True, check=True, cwd=os.path.dirname(sys.executable)
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _system_version(tool: str) -> tuple[int, ...]:
    try:
        return _release(subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.SubprocessError):
        return ()


def _requires() -> list[str]:
    target = _target()
    missing = []
    if target["torch"] is None:
        if "builds-v0" in Path(sys.prefix).parts:  # uv's isolated environment, from which the target cannot be seen
            raise SystemExit(
                "gpualloc build: uv's build isolation hides the torch this package must be built against; install torch and setuptools, "
                "then run: uv pip install --no-build-isolation ."
            )
        missing.append(f"torch=={os.environ.get('GPUALLOC_BUILD_TORCH', FALLBACK_TORCH)}")
    if _release(target["setuptools"] or "0") < MIN_SETUPTOOLS:
        missing.append("setuptools>=77")
    if _release(target["cmake"] or "0") < MIN_CMAKE and _system_version("cmake") < MIN_CMAKE:
        missing.append("cmake>=3.26")
    if target["ninja"] is None and not _system_version("ninja"):
        missing.append("ninja>=1.11")
    return missing


def _setuptools() -> Any:
    """setuptools' own backend, with the target environment visible behind the isolated one."""
    sys.path.extend(entry for entry in _target()["path"] if entry and entry not in sys.path)
    from setuptools import build_meta

    return build_meta


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return _requires()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return _requires()


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return _requires()


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    return str(_setuptools().prepare_metadata_for_build_wheel(metadata_directory, config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Any = None) -> str:
    return str(_setuptools().prepare_metadata_for_build_editable(metadata_directory, config_settings))


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    return str(_setuptools().build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    return str(_setuptools().build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    return str(_setuptools().build_sdist(sdist_directory, config_settings))
