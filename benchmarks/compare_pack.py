"""pack and unpack beside their peers on one GPU, as shares of the copy bandwidth measured in the same run.

    python benchmarks/compare_pack.py --output benchmarks/results/pack_h200.json

Random gradients in rotating buffers, medians of single calls timed by device events with the device kept busy before
each, so that an empty launch reads a few microseconds and the host does not count. Peers that are not installed are
skipped by name. Host time is that of one asynchronous call.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.parameter_lists import gradient_sets, rotate, shapes
from gpualloc import ops
from gpualloc.bench.environment import detect_environment

MODELS = ("mobilenet_v2", "resnet50", "gpt2", "vit_large", "llama_1b")
Turn = tuple[list[Tensor], Tensor]
Call = Callable[[list[Tensor], Tensor], None]


class Peers:
    """Each call takes one turn of the rotation; views that a caller would keep across steps are made beforehand."""

    def __init__(self, turns: list[Turn], device: str) -> None:
        self.wide = {flat.data_ptr(): [gradient.view(-1) for gradient in gradients] for gradients, flat in turns}
        self.narrow = {flat.data_ptr(): list(flat.split([g.numel() for g in gradients])) for gradients, flat in turns}
        self.bucket = {flat.data_ptr(): torch.randn(flat.numel(), device=device) for _, flat in turns}  # DDP's, beside each wire
        self.nonfinite = torch.zeros(1, dtype=torch.int64, device=device)
        self.sumsq = torch.zeros(1, dtype=torch.float64, device=device)
        self.found_inf = torch.zeros(1, device=device)
        self.inverse_scale = torch.full((1,), 0.5, device=device)

    def calls(self) -> dict[str, Call]:
        calls: dict[str, Call] = {
            "pack / gpualloc": lambda g, f: ops.pack(g, f, 0.5),
            "pack / gpualloc, counted": lambda g, f: ops.pack(g, f, 0.5, nonfinite=self.nonfinite),
            "pack / torch _foreach_copy_": lambda g, f: torch._foreach_copy_(self.narrow[f.data_ptr()], self.wide[f.data_ptr()]),
            "unpack / gpualloc": lambda g, f: ops.unpack(f, g),
            "unpack / gpualloc, counted and summed": lambda g, f: ops.unpack(f, g, 0.5, sumsq=self.sumsq, nonfinite=self.nonfinite),
            "unpack / torch _foreach_copy_": lambda g, f: torch._foreach_copy_(self.wide[f.data_ptr()], self.narrow[f.data_ptr()]),
            "pack_flat / gpualloc": lambda g, f: ops.pack_flat(self.bucket[f.data_ptr()], f, 0.5),
            "pack_flat / torch fp16 hook": self.torch_hook_pack,
            "unpack_flat / gpualloc": lambda g, f: ops.unpack_flat(f, self.bucket[f.data_ptr()]),
            "unpack_flat / gpualloc, counted and summed": lambda g, f: ops.unpack_flat(
                f, self.bucket[f.data_ptr()], 0.5, sumsq=self.sumsq, nonfinite=self.nonfinite
            ),
            "unpack_flat / torch fp16 hook": lambda g, f: self.bucket[f.data_ptr()].copy_(f),
            "unpack_flat / torch widen, unscale, check, norm": self.torch_finish,
        }
        try:
            import amp_C
            from apex.multi_tensor_apply import multi_tensor_applier
        except ImportError:
            print("apex is not installed: skipped", file=sys.stderr)
            return calls
        overflow = torch.zeros(1, dtype=torch.int32, device=self.nonfinite.device)

        def apex(tensors: list[list[Tensor]]) -> None:
            multi_tensor_applier(amp_C.multi_tensor_scale, overflow, tensors, 0.5)

        calls["pack / apex multi_tensor_scale"] = lambda g, f: apex([self.wide[f.data_ptr()], self.narrow[f.data_ptr()]])
        calls["unpack / apex multi_tensor_scale"] = lambda g, f: apex([self.narrow[f.data_ptr()], self.wide[f.data_ptr()]])
        return calls

    def torch_hook_pack(self, gradients: list[Tensor], flat: Tensor) -> None:
        """The same operations as torch's fp16_compress_hook."""
        self.bucket[flat.data_ptr()].to(torch.float16).div_(2)

    def torch_finish(self, gradients: list[Tensor], flat: Tensor) -> None:
        """What a training loop does after torch's hook: widen, unscale and look for inf and NaN, global norm."""
        bucket = self.bucket[flat.data_ptr()]
        bucket.copy_(flat)
        torch._amp_foreach_non_finite_check_and_unscale_([bucket], self.found_inf, self.inverse_scale)
        torch.linalg.vector_norm(bucket)


def device_times_s(call: Call, turns: Iterator[Turn], repeats: int) -> list[float]:
    """Device time of single calls. A spin before each, longer than the slowest host call, keeps the host's pace out."""
    events = []
    for _ in range(repeats):
        turn = next(turns)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(3_000_000)  # cycles, about 1.5 ms
        start.record()
        call(*turn)
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in events]


def host_times_s(call: Call, turns: Iterator[Turn], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        turn = next(turns)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call(*turn)
        times.append(time.perf_counter() - begin)
    return times


def copy_ceiling_gb_s() -> float:
    """Device-to-device copy, bytes read plus bytes written."""
    source, target = torch.randn(2**29, device="cuda"), torch.empty(2**29, device="cuda")
    times = device_times_s(lambda g, f: target.copy_(source), iter(lambda: ([], target), None), 15)
    return 2 * source.nbytes / statistics.median(times[5:]) / 1e9


def measure(models: list[str], repeats: int) -> dict[str, Any]:
    ceiling = copy_ceiling_gb_s()
    empty = torch.zeros(1, device="cuda")
    launch = statistics.median(device_times_s(lambda g, f: empty.zero_(), iter(lambda: ([], empty), None), 50)[10:])
    print(f"copy ceiling {ceiling:.0f} GB/s, a launch on one element {launch * 1e6:.1f} us")
    rows = []
    for model in models:
        numels = [size.numel() for size in shapes(model)]
        turns = rotate(gradient_sets(model, "cuda"))
        peers = Peers(turns, "cuda")
        rotation = itertools.cycle(turns)
        floor_s = 6 * sum(numels) / ceiling / 1e9
        print(f"\n{model}: {sum(numels) / 1e6:.1f} M in {len(numels)} tensors, floor {floor_s * 1e3:.4f} ms")
        for name, call in peers.calls().items():
            device_times_s(call, rotation, 60)  # warm up, and every rotating buffer once
            device = sorted(device_times_s(call, rotation, repeats))
            host = statistics.median(host_times_s(call, rotation, 30))
            median = statistics.median(device)
            row = {
                "model": model,
                "call": name,
                "device_ms": median * 1e3,
                "device_p10_ms": device[len(device) // 10] * 1e3,
                "device_p90_ms": device[-len(device) // 10] * 1e3,
                "host_us": host * 1e6,
                "share_of_copy_ceiling": floor_s / median,
            }
            rows.append(row)
            print(f"  {name:48s} {row['device_ms']:8.4f} ms  ({row['share_of_copy_ceiling']:.3f})  host {row['host_us']:7.1f} us")
        del turns, rotation, peers
        torch.cuda.empty_cache()
    return {"copy_ceiling_gb_s": ceiling, "launch_us": launch * 1e6, "repeats": repeats, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--models", default=",".join(MODELS), help="comma list (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("compare_pack: no CUDA device; run it on a machine with a GPU")
    result = measure(arguments.models.split(","), arguments.repeats)
    if arguments.output:
        environment = vars(detect_environment())
        arguments.output.write_text(json.dumps({"command": " ".join(sys.argv), "environment": environment, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
