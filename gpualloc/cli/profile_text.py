"""A profile for people: the verdict, where the step goes, and what the device did."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from gpualloc.cli.tables import printable, text_table
from gpualloc.profiling.records import Profile, RankProfile

_PART_NAMES = {
    "input_wait_s": "waiting for input",
    "host_to_device_s": "copies from the host",
    "kernels_s": "kernels",
    "optimizer_s": "optimizer",
    "exposed_comm_s": "exposed communication",
    "other_memory_s": "other copies",
    "launch_gap_s": "launch gaps",
}
_CPU_NAMES = {"kernels_s": "operators", "launch_gap_s": "Python and dispatch"}
_GPU_ONLY = ("host_to_device_s", "other_memory_s")


def print_profile(profile: Profile, console: Console) -> None:
    """No line is wider than the console; a word that is, such as a path, is left whole."""
    first = profile.ranks[0]
    _write(f"{profile.subject}", console, style="dim")
    _write(profile.verdict.sentence, console, style="bold")
    for evidence in profile.verdict.evidence[1:]:
        _write(f"  {evidence}", console)
    console.print()
    _print_parts(profile.ranks, first.device, console)
    console.print()
    for line in _device_lines(profile.ranks):
        _write(line, console)
    for line in _small_print(profile.ranks):
        _write(line, console, style="dim")


def _print_parts(ranks: Sequence[RankProfile], device: str, console: Console) -> None:
    several = len(ranks) > 1
    columns = ("ms", "share", *(("lowest rank", "highest rank") if several else ()))
    table = text_table("a step", *columns, right=columns)
    mean_step_s = _mean(rank.times.step_time_s for rank in ranks)
    for part, name in _PART_NAMES.items():
        if device == "cpu" and part in _GPU_ONLY:
            continue
        values_s = [getattr(rank.times, part) for rank in ranks]
        label = _CPU_NAMES.get(part, name) if device == "cpu" else name
        table.add_row(label, *_cells(values_s, several, share=_mean(values_s) / mean_step_s))
    table.add_row("whole step", *_cells([rank.times.step_time_s for rank in ranks], several, share=1.0), style="bold")
    hidden_s = [rank.times.hidden_comm_s for rank in ranks]
    if any(hidden_s):
        table.add_row("hidden communication", *_cells(hidden_s, several, share=_mean(hidden_s) / mean_step_s), style="dim")
    console.print(table)


def _cells(values_s: Sequence[float], several: bool, *, share: float) -> list[str]:
    figures = [f"{_mean(values_s) * 1e3:.2f}", f"{share:.1%}"]
    return [*figures, f"{min(values_s) * 1e3:.2f}", f"{max(values_s) * 1e3:.2f}"] if several else figures


def _device_lines(ranks: Sequence[RankProfile]) -> Iterator[str]:
    """Of the rank that computes longest."""
    rank = max(ranks, key=lambda each: each.times.computing_s)
    whose = f"rank {rank.rank}, " if len(ranks) > 1 else ""
    used = rank.utilisation
    if rank.gpu_busy is not None:
        figures = [f"busy {rank.gpu_busy:.0%} of the step"]
        if used is not None:
            named = (("SMs", used.sm), ("tensor cores", used.tensor), ("DRAM bandwidth", used.dram))
            figures += [f"{name} {value:.0%}" for name, value in named if value is not None]
        yield f"{whose}{rank.device_name}: {', '.join(figures)}"
    else:
        yield f"{whose}{rank.device_name}: not comparable with a GPU"
    memory = rank.memory
    kind = "allocated" if rank.device == "cuda" else "resident"
    yield (
        f"memory: {_gib(memory.high_water_bytes)} GiB {kind} at most, {_gib(memory.headroom_bytes)} GiB of "
        f"{_gib(memory.total_bytes)} GiB to spare"
    )
    yield _flops_line(rank)


def _flops_line(rank: RankProfile) -> str:
    if rank.costs is None or rank.flops_per_s is None:
        return "arithmetic: not counted"
    of_what = "MFU unknown: no peak is known for this device"
    if rank.mfu is not None:
        of_what = f"MFU {rank.mfu:.1%} of the dense peak ({rank.peak_source})"
    elif rank.speed is not None:
        share = rank.flops_per_s / rank.speed.matmul_flops_per_s
        of_what += f"; {share:.0%} of what a large {rank.speed.matmul_format} product reaches here"
    formats = ", ".join(sorted(rank.costs.flops)) or "none in products"
    return f"arithmetic: {rank.costs.total_flops / 1e9:.2f} GFLOP a step ({formats}), {_rate(rank.flops_per_s)}, {of_what}"


def _small_print(ranks: Sequence[RankProfile]) -> Iterator[str]:
    slowest = max(ranks, key=lambda each: each.step_time_s)
    noise = ", hidden by other variation" if slowest.overhead_ratio < 0 else ""
    yield (
        f"profiler: {slowest.step_time_s * 1e3:.2f} ms a step without, {slowest.profiled_step_time_s * 1e3:.2f} ms with it "
        f"({slowest.overhead_ratio:+.1%}{noise}); what it adds is taken off the gaps; means over {slowest.num_steps} steps"
    )
    reason = next((rank.utilisation.reason for rank in ranks if rank.utilisation is not None and rank.utilisation.reason), None)
    if reason is not None:
        yield f"no SM, tensor and DRAM counters: {reason}"
    yield from dict.fromkeys(note for rank in ranks for note in rank.notes)
    paths = [rank.trace_path for rank in ranks]
    yield f"trace, for https://ui.perfetto.dev: {paths[0]}" + (f" and {len(paths) - 1} more beside it" if len(paths) > 1 else "")


def _write(text: str, console: Console, *, style: str = "") -> None:
    indent = len(text) - len(text.lstrip())
    lines = textwrap.fill(
        printable(text),
        console.width,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )
    console.print(Text(lines, style=style), soft_wrap=True)


def _mean(values: Sequence[float] | Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f}" if num_bytes < 10 * 2**30 else f"{num_bytes / 2**30:.1f}"


def _rate(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e12:.1f} TFLOP/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:.1f} GFLOP/s"
