"""Hooks by name for compare_hooks.py. No `from __future__ import annotations`: DDP compares the annotations of a hook as objects."""

import os

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future


def dies_on_rank_1(state: object, bucket: dist.GradBucket) -> Future[Tensor]:
    if dist.get_rank() == 1:
        os._exit(7)
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
