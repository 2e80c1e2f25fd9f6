"""pack and unpack on the CPU beside torch's own conversions, as shares of the copy bandwidth measured in the same run.

    python benchmarks/compare_cpu.py --output benchmarks/results/pack_cpu.json

The ceiling is a STREAM-like copy between FP32 arrays of the same number of elements, bytes read plus bytes written, by the
fastest of torch's copy_, the C library's memcpy and (where a C compiler is at hand) a loop of streaming stores. An ordinary
store first reads the line that it overwrites: a third transfer that no figure here counts as useful, and that streaming
stores, and memcpy when it uses them, do without. A conversion moves 6 bytes per element.

Random data in buffers that rotate past the caches. Every round runs every call and every copy once, so that what else the
machine does falls on all alike; a share compares lower deciles. `.to(dtype)` also allocates, so it pays for fresh pages.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.parameter_lists import ROTATION_BYTES
from gpualloc import _native, ops
from gpualloc.bench.environment import detect_environment

SECONDS = 12.0
BYTES_PER_ELEMENT = 6
Call = Callable[[], object]

STREAMING_COPY = """
#include <emmintrin.h>
void streaming_copy(char* to, const char* from, long bytes) {
  for (long i = 0; i < bytes; i += 64) {
    _mm_prefetch(from + i + 4096, _MM_HINT_T0);
    for (long j = i; j < i + 64; j += 16) _mm_stream_si128((__m128i*)(to + j), _mm_load_si128((const __m128i*)(from + j)));
  }
  _mm_sfence();
}
"""


def compile_streaming_copy() -> Any | None:
    """The C function above, or None without a compiler for this processor."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "copy.c"), Path(folder, "copy.so")
        source.write_text(STREAMING_COPY)
        if subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], capture_output=True).returncode != 0:
            return None
        return ctypes.CDLL(str(library)).streaming_copy


class Buffers:
    """Turns of (FP32, 16-bit) buffers in an order such that none is in a cache when its turn comes."""

    def __init__(self, numel: int, dtype: torch.dtype) -> None:
        count = min(41, max(3, ROTATION_BYTES // (BYTES_PER_ELEMENT * numel))) | 1  # odd: a call takes two turns
        self.wides = [torch.randn(numel) for _ in range(count)]
        self.halves = [wide.to(dtype) for wide in self.wides]
        self.turn = 0

    def conversion(self, call: Callable[[Tensor, Tensor], object]) -> Call:
        return lambda: call(self._next(self.wides), self._next(self.halves))

    def copy(self, call: Callable[[Tensor, Tensor], object]) -> Call:
        return lambda: call(self._next(self.wides), self._next(self.wides))

    def _next(self, buffers: list[Tensor]) -> Tensor:
        self.turn += 1
        return buffers[self.turn % len(buffers)]


def copies(buffers: Buffers, threads: int, pool: ThreadPoolExecutor) -> dict[str, Call]:
    """The ways to copy one FP32 buffer to another over `threads` threads; ctypes lets go of the interpreter's lock."""

    def over_threads(copy: Any) -> Callable[[Tensor, Tensor], None]:
        copy.argtypes, copy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], None

        def run(target: Tensor, source: Tensor) -> None:
            share = source.nbytes // threads // 64 * 64  # whole lines; what is left over, less than a line a thread, is not copied
            starts = range(0, threads * share, share)
            list(pool.map(lambda start: copy(target.data_ptr() + start, source.data_ptr() + start, share), starts))

        return run

    calls = {"copy / torch copy_": buffers.copy(lambda target, source: target.copy_(source))}
    calls["copy / memcpy"] = buffers.copy(over_threads(ctypes.CDLL(None).memcpy))
    streaming_copy = compile_streaming_copy()
    if streaming_copy is None:
        print("no C compiler: the copy with streaming stores is left out of the ceiling", file=sys.stderr)
    else:
        calls["copy / streaming stores"] = buffers.copy(over_threads(streaming_copy))
    return calls


def conversions(buffers: Buffers) -> dict[str, Call]:
    sumsq, nonfinite = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    calls: dict[str, Callable[[Tensor, Tensor], object]] = {
        "pack / gpualloc": lambda wide, half: ops.pack_flat(wide, half, 0.5),
        "pack / gpualloc, counted": lambda wide, half: ops.pack_flat(wide, half, 0.5, nonfinite=nonfinite),
        "pack / torch copy_": lambda wide, half: half.copy_(wide),
        "pack / torch .to": lambda wide, half: wide.to(half.dtype),
        "unpack / gpualloc": lambda wide, half: ops.unpack_flat(half, wide),
        "unpack / gpualloc, counted and summed": lambda wide, half: ops.unpack_flat(half, wide, sumsq=sumsq, nonfinite=nonfinite),
        "unpack / torch copy_": lambda wide, half: wide.copy_(half),
        "unpack / torch .to": lambda wide, half: half.to(torch.float32),
    }
    return {name: buffers.conversion(call) for name, call in calls.items()}


def interleaved(calls: dict[str, Call], rounds_at_least: int, seconds: float) -> dict[str, list[float]]:
    """Sorted times of single calls, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < rounds_at_least + 1 or time.perf_counter() < end:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: sorted(times_s[1:]) for name, times_s in times.items()}  # the first round warms up


def figures(times_s: list[float], num_bytes: int) -> dict[str, float]:
    """Of sorted times: median, spread, and the bandwidth at the lower decile, which shares are made of."""
    median, p10, p90 = statistics.median(times_s), times_s[len(times_s) // 10], times_s[-len(times_s) // 10]
    return {
        "median_ms": median * 1e3,
        "p10_ms": p10 * 1e3,
        "p90_ms": p90 * 1e3,
        "median_gb_s": num_bytes / median / 1e9,
        "p10_gb_s": num_bytes / p10 / 1e9,
        "repeats": len(times_s),
    }


def measure(numel: int, dtype: torch.dtype, threads: int, seconds: float) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    buffers = Buffers(numel, dtype)
    with ThreadPoolExecutor(threads) as pool:
        ceilings = copies(buffers, threads, pool)
        times = interleaved({**ceilings, **conversions(buffers)}, 15, seconds)
    found = {name: figures(times_s, numel * (8 if name in ceilings else BYTES_PER_ELEMENT)) for name, times_s in times.items()}
    fastest = max(ceilings, key=lambda name: found[name]["p10_gb_s"])
    ceiling, wire = found[fastest]["p10_gb_s"], str(dtype).removeprefix("torch.")
    print(f"\n{numel / 1e6:.1f} M, {wire}, {threads} thread(s); ceiling {ceiling:.1f} GB/s by {fastest}")
    rows = []
    for name, row in found.items():
        share = row["p10_gb_s"] / ceiling
        rows.append({"numel": numel, "wire": wire, "threads": threads, "call": name, **row, "share_of_copy_ceiling": share})
        spread = f"{row['p10_ms']:.3f} .. {row['p90_ms']:.3f}"
        bandwidth = f"{row['median_gb_s']:6.1f} GB/s, best tenth {row['p10_gb_s']:6.1f} ({share:.3f})"
        print(f"  {name:40s} {row['median_ms']:8.3f} ms ({spread:18s}) {bandwidth}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--numels", default="3500000,25000000,100000000", help="comma list (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each size, wire, threads (default: %(default)s)")
    arguments = parser.parse_args()
    if not _native.available_or_warn():
        raise SystemExit("compare_cpu: the compiled extension is missing; run: pip install .")
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"compare_cpu: the machine is not idle (load {load:.1f}): the figures are not worth keeping", file=sys.stderr)
    rows = []
    for threads in sorted({1, cores}):
        for numel in arguments.numels.split(","):
            for dtype in (torch.float16, torch.bfloat16):
                rows += measure(int(numel), dtype, threads, arguments.seconds)
    if arguments.output:
        result = {"command": " ".join(sys.argv), "environment": vars(detect_environment("cpu")), "cpu_isa": _native.module().cpu_isa}
        result |= {"load_at_start": load, "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
