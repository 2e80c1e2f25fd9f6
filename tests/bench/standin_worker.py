"""A worker that is over at once, or does what the rank's environment says: no torch, no order."""

import os
import subprocess
import sys
import time
from pathlib import Path

from gpualloc.bench import rank_files


def main(folder: Path, rank: int) -> int:
    what = os.environ.get("STANDIN", "")
    if what == "fail":
        print("no space left")
        sys.exit(3)
    if what.startswith("signal "):
        os.kill(os.getpid(), int(what.split()[1]))
    if what == "wait":
        with subprocess.Popen(["sleep", "60"]):
            time.sleep(60)
    (folder / f"rank{rank}.seen").write_text(f"{os.environ.get('OWN')} {os.getpgid(0) == os.getpid()} {sys.stdin.read()!r}")
    rank_files.report_file(folder, rank).write_text("{}")
    return 0
