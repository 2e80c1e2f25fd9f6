"""What devices and the processes on them do while jobs run: sampled, kept, and judged for waste.

gpus, host -> sampler -> samples -> store -> ledger -> waste: a sampler reads one sample a device and interval, the store keeps them,
and a ledger finds the spans in which a device was paid for and not used (spans), and who held it then (holders).
"""

from gpualloc.watching.ledger import find_waste
from gpualloc.watching.samples import DeviceSample, ProcessSample
from gpualloc.watching.store import Watch, WatchStore
from gpualloc.watching.waste import Price, WasteReport, WasteRule

__all__ = ["DeviceSample", "Price", "ProcessSample", "WasteReport", "WasteRule", "Watch", "WatchStore", "find_waste"]
