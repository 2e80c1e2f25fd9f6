"""What `wire="auto"` decided and what it measured for it, as text."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpualloc.comm.handle import StepTimes

_BYTES_PER_ELEMENT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0 + 4 / 256}


def explain(decisions: dict[str, Any] | None, times: StepTimes | None, *, wire: str, world_size: int) -> str:
    """The plan, the plans it was measured against, the link as fitted, and the last step that was timed.

    Args:
        decisions: of the compiled hook's controller; None for a fixed wire.
        times: of the last step that was timed, or None.
    """
    lines = []
    if decisions is None:
        small = "small neighbours together, " if wire in ("fp16", "bf16") else ""
        lines.append(f'wire="{wire}", {world_size} ranks: every bucket of FP32 gradients alone, {small}in {wire}')
    elif not decisions["buckets"]:
        lines.append(f'wire="{wire}", {world_size} ranks: no step has been taken yet')
    elif not decisions["decided"]:
        lines.append(f'wire="{wire}", {world_size} ranks: still measuring, {len(decisions["candidates"])} plans so far')
    else:
        name = decisions["candidates"][decisions["chosen"]][0]
        again = f", decision {decisions['num_decisions']}" if decisions["num_decisions"] > 1 else ""
        frozen = ", frozen" if decisions["frozen"] else ""
        lines.append(f'wire="{wire}", {world_size} ranks: "{name}"{again}{frozen}')
        lines += ["", *_candidates(decisions), "", *_transfers(decisions)]
    if decisions is not None:
        for name, (latency_s, bytes_per_s) in decisions["links"].items():
            lines.append(f"a collective in {name} takes {latency_s * 1e3:.3f} ms + its bytes / {bytes_per_s / 1e9:.2f} GB/s")
        for name, (_, bytes_per_s) in decisions["lane_links"].items():
            lines.append(f"on {decisions['max_lanes']} communicators {name} runs at {bytes_per_s / 1e9:.2f} GB/s")
        if decisions["lane_links"] and "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ:
            lines.append(
                "CUDA_DEVICE_MAX_CONNECTIONS is not set: with 32, before CUDA starts, several communicators no longer wait for each other"
            )
    if times is not None:
        lines.append(
            f"the last timed step: {times.period_s * 1e3:.2f} ms, of which {times.exposed_s * 1e3:.2f} ms exposed communication; "
            f"communication {times.comm_s * 1e3:.2f} ms in all, {times.hidden_s * 1e3:.2f} ms of it hidden"
        )
    return "\n".join(lines)


def _candidates(decisions: dict[str, Any]) -> list[str]:
    """Plans tried, the fastest first."""
    rows = []
    numbered = sorted(enumerate(decisions["candidates"]), key=lambda item: item[1][2])
    for number, (name, plan, step_s) in numbered:
        megabytes = sum(_wire_bytes(transfer, decisions["buckets"]) for transfer in plan) / 1e6
        step = f"{step_s * 1e3:.2f}" if step_s else "-"
        rows.append(("*" if number == decisions["chosen"] else "", name, str(len(plan)), f"{megabytes:.2f}", step))
    return _table(("", "plan", "transfers", "MB", "step, ms"), rows)


def _transfers(decisions: dict[str, Any]) -> list[str]:
    rows = []
    ready_s = decisions["ready_s"]
    for transfer in decisions["plan"]:
        first, last, wire, slices, lanes = transfer
        buckets = f"{first}" if first == last else f"{first}-{last}"
        what = wire if slices == 1 else f"{wire} in {slices} slices"
        what += f", {lanes} communicators" if lanes > 1 else ""
        ready = f"{ready_s[last] * 1e3:.2f}" if last < len(ready_s) else "-"
        rows.append((buckets, f"{_wire_bytes(transfer, decisions['buckets']) / 1e6:.3f}", ready, what))
    return _table(("buckets", "MB", "ready at, ms", "on the wire"), rows)


def _wire_bytes(transfer: tuple[int, int, str, int, int], buckets: list[tuple[int, bool, int]]) -> float:
    first, last, wire, *_ = transfer
    return sum(numel for numel, _, _ in buckets[first : last + 1]) * _BYTES_PER_ELEMENT[wire]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns padded to their width; text to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    is_text = [
        not all(row[column].replace(".", "").replace("-", "").isdigit() or not row[column] for row in rows) for column in range(len(header))
    ]
    out = io.StringIO()
    for row in (header, *rows):
        cells = [cell.ljust(width) if left else cell.rjust(width) for cell, width, left in zip(row, widths, is_text, strict=True)]
        print("  ".join(cells).rstrip(), file=out)
    return out.getvalue().splitlines()
