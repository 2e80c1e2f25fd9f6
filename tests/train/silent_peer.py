"""Rank 0 puts a question to a rank that never answers, and fails: `python -m tests.train.silent_peer PATH_OF_RENDEZVOUS RANK`."""

import signal
import sys

import torch.distributed as dist

from gpualloc.train.agreement import Agreement

TIMEOUT_S = 2

if __name__ == "__main__":
    rank = int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    asking = Agreement(save_every_s=None, timeout_s=TIMEOUT_S)
    dist.barrier()
    if rank == 1:
        signal.pause()
    asking.after_step()
    asking.after_step()
