"""What the scripts share: the device, and a process group whose ranks may share one GPU."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

DEVICE = torch.device("cuda" if torch.cuda.is_available() and os.environ.get("PROFILE_TEST_DEVICE") != "cpu" else "cpu")
ON_GPU = DEVICE.type == "cuda"
NUM_STEPS = 100  # more than any profile here takes
torch.manual_seed(0)


def join_ranks() -> int:
    """The rank, inside the default process group; all NCCL ranks are on GPU 0, over TCP."""
    rank = int(os.environ["RANK"])
    if ON_GPU:
        os.environ.update(NCCL_HOSTID=f"rank{rank}", NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1")
        torch.cuda.set_device(0)
    else:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if ON_GPU else "gloo")
    return rank
