"""A rank without torch: `fault.py WHAT [RANK]`; rank RANK of the first start does WHAT, all others sleep or end as it says."""

import os
import signal
import sys
import time
from pathlib import Path

what, rank = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0"
attempt = Path(os.environ["GPUALLOC_LOG_FOLDER"]).name
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, {what}, {attempt}", flush=True)
print("visible:", os.environ.get("CUDA_VISIBLE_DEVICES"), "cores:", sorted(os.sched_getaffinity(0)), flush=True)
if what == "environment":
    print({name: value for name, value in os.environ.items() if name.startswith("GPUALLOC_")}, flush=True)
    sys.exit(0)
if os.environ["RANK"] == rank and (attempt == "attempt1" or what.endswith("-always")):
    if what.startswith("raise"):
        raise ValueError(f"no such layer in rank {rank}")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stall":
        os.kill(os.getpid(), signal.SIGSTOP)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "save-for":

    def save(*_: object) -> None:
        time.sleep(float(rank))
        print("saved", flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
if what in ("sleep", "deaf") or attempt == "attempt1":
    print("sleeping", flush=True)
    time.sleep(120)
