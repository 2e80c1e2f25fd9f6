"""Gradient communication for DistributedDataParallel: 16 bits on the wire, scaled before they are narrowed."""

from gpualloc.comm.callable_hooks import bf16_hook, fp16_hook
from gpualloc.comm.handle import HookHandle, HookStats, undecided_hooks
from gpualloc.comm.register import WIRES, register_comm_hook
from gpualloc.comm.stats_logger import StatsLogger

__all__ = ["WIRES", "HookHandle", "HookStats", "StatsLogger", "bf16_hook", "fp16_hook", "register_comm_hook", "undecided_hooks"]
