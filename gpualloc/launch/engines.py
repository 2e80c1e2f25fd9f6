"""The engines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from gpualloc.launch.engine import Engine
    from gpualloc.launch.job_files import FileFormat

ENGINES = ("local", "slurm", "ray")  # start jobs
FILE_ENGINES = ("kubernetes", "skypilot", "dstack")  # take files


def make_engine(name: str, options: Sequence[str], *, node: str | None, warn: Callable[[str], None]) -> Engine:
    """Args:
        options: KEY=VALUE words for this engine.
        node: what the plan calls this machine; for the local engine.

    Raises:
        UsageError: an option is unknown.
    """
    if name == "slurm":
        from gpualloc.launch.slurm import SlurmEngine

        return SlurmEngine(options)
    if name == "ray":
        from gpualloc.launch.ray_cluster import RayEngine

        return RayEngine(options)
    if options:
        raise UsageError(f"the local engine has no options, --option {options[0]!r} is for another one")
    from gpualloc.launch.local import LocalEngine

    return LocalEngine(node=node, warn=warn)


def make_file_format(name: str, options: Sequence[str]) -> FileFormat:
    """Raises:
    UsageError: an option is unknown.
    """
    from gpualloc.launch import job_files

    return job_files.FORMATS[name](options)
