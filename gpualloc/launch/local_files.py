"""Whether a file is on a disk of this machine: locks of SQLite's are not to be relied on over a network."""

from __future__ import annotations

import re
from pathlib import Path

from gpualloc.errors import StoreError

# SQLite's "How To Corrupt An SQLite Database File", 2.1 (https://sqlite.org/howtocorrupt.html) and "Write-Ahead Logging": all processes
# that use a WAL database must be on one machine.
_NETWORK_TYPES = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|gpfs|beegfs|glusterfs|ocfs2|gfs2|orangefs|pvfs2|"
    r"fuse\.(sshfs|glusterfs|s3fs|gcsfuse|ceph.*|juicefs|mfs|davfs.*|rclone|blobfuse\d?|goofys)|fuse\.mount-s3|davfs|wekafs|panfs"
)


def refuse_network_file_system(path: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises:
    StoreError: `path`, or the folder that it would be made in, is on a network file system.
    """
    kind = file_system_type(path, mounts=mounts)
    if kind is not None and _NETWORK_TYPES.fullmatch(kind):
        raise StoreError(
            f"{path} is on a network file system ({kind}), where locks cannot be relied on and two machines would hold one GPU; "
            "set GPUALLOC_STATE to a file on a local disk, such as /var/tmp/gpualloc-state.sqlite"
        )


def file_system_type(path: Path, *, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the mount that holds `path`; None where it is not told.

    Args:
        mounts: lines "id parent major:minor root mount-point options ... - type source options" (proc(5)).
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    target = path.absolute().resolve()
    found, found_length = None, -1
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])  # blanks are written as \040
        if target.is_relative_to(point) and len(point) >= found_length:  # a later mount hides an earlier one on the same point
            found, found_length = after.split()[0], len(point)
    return found
