"""`gpualloc advise --other-gpu`: its notation, and its part of the answer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from gpualloc.advice import Advice, Evidence
from gpualloc.advice.money import find_rent
from gpualloc.advice.other_gpus import GpuKind, carry_over
from gpualloc.advice.records import CarriedOver, OtherGpu, RentOf
from gpualloc.advice.words import hours_text, interval_text, money_text, rate_text, times_text
from gpualloc.cli.columns import Column, Row, table_lines
from gpualloc.cli.tables import printable
from gpualloc.errors import UsageError
from gpualloc.money import PriceBook
from gpualloc.records import Measurement
from gpualloc.scaling import ScalingModel

_MAX_RATIO = 1e3


def parse_gpu_kind(text: str) -> GpuKind:
    """NAME, NAME:COMPUTE or NAME:COMPUTE:LINK.

    Raises:
        UsageError: no name, or a ratio that cannot be meant.
    """
    name, *ratios = text.split(":")
    try:
        numbers = [float(ratio) for ratio in ratios]
    except ValueError:
        numbers = [math.nan]
    if not name.strip() or len(numbers) > 2 or not all(1 / _MAX_RATIO <= number <= _MAX_RATIO for number in numbers):
        raise UsageError(
            f"--other-gpu {text!r} is not NAME, NAME:COMPUTE or NAME:COMPUTE:LINK, such as 'NVIDIA L4' or 'NVIDIA L4:1.9:1', "
            f"with ratios of {1 / _MAX_RATIO:g} to {_MAX_RATIO:,.0f}"
        )
    return GpuKind(
        device_name=name.strip(), compute_ratio=numbers[0] if numbers else None, link_ratio=numbers[1] if len(numbers) > 1 else 1.0
    )


def with_other_gpus(
    advice: Advice,
    kinds: Sequence[GpuKind],
    *,
    evidence: Evidence,
    model: ScalingModel | None,
    history: Sequence[Measurement],
    gpus_per_node: int,
    book: PriceBook,
    provider: str | None,
) -> Advice:
    """The advice with the other kinds of GPU, each at the price of that provider, or of the book's first one that has it.

    Raises:
        UsageError: nothing can be carried over to one of them.
    """
    if model is None:
        raise UsageError("--other-gpu: there are too few measurements of whole GPUs to forecast from; measure more with gpualloc bench")

    def rent_of(name: str) -> tuple[RentOf | None, str | None]:
        known = provider if provider is not None and book.rent_of(name, provider=provider) is not None else None
        rent, _ = find_rent(book, name, is_whole_gpu=True, given=None, provider=known)
        return rent, None if rent is not None else f"no price is known for {name}; put one into a price book: docs/prices.md"

    found = carry_over(advice, kinds, evidence=evidence, model=model, history=history, gpus_per_node=gpus_per_node, rent_of=rent_of)
    return replace(advice, other_gpus=found)


def print_other_gpus(advice: Advice, console: Console) -> None:
    """A block for each kind: what it rests on, then a row for each number of GPUs."""
    if not advice.other_gpus:
        return
    console.print()
    console.print(Text("On other kinds of GPU: carried over, not measured", style="bold"))
    for other in advice.other_gpus:
        _paragraph(f"{other.device_name}: {_basis(other, advice.device_name)}", console)
        rows = [_row(option) for option in other.options]
        for line in table_lines(_columns(other, advice.device_name), rows, console.width) if rows else []:
            console.print(line, soft_wrap=True)
        for note in dict.fromkeys(option.note for option in other.options if option.note):
            _paragraph(note, console, style="yellow")
    measure = "90 % intervals, wide because jobs differ in how far a faster GPU shows; a few rows measured there tell far more"
    _paragraph(measure, console, style="dim")


def _basis(other: OtherGpu, measured: str) -> str:
    links = "links as fast" if other.link_ratio == 1 else f"links {other.link_ratio:.3g} times as fast"
    speed = f"computing {other.compute_ratio:.2f} times as fast as {measured} ({other.described}), {links}"
    if other.rent is None:
        return f"{speed}; no cost: {other.why_no_price}"
    example = "example price, " if other.rent.is_example else ""
    return f"{speed}; {money_text(other.rent.amount_per_gpu_hour)} {other.rent.currency} per GPU-hour ({example}{other.rent.described})"


def _columns(other: OtherGpu, measured: str) -> tuple[Column, ...]:
    currency = "" if other.rent is None else f" {printable(other.rent.currency)}"
    return (
        Column("GPUs", 9),
        Column("nodes", 1),
        Column("ms a step", 5),
        Column("samples/s", 8),
        Column(f"over {printable(measured)}", 6),
        Column("time", 7),
        Column(f"cost{currency}", 6.5),
        Column("per M samples", 3),
        Column("GiB needed", 4),
        Column("figures", 8.5, is_left=True),
    )


def _row(option: CarriedOver) -> Row:
    step = option.step_time_s
    cells = (
        str(option.num_gpus),
        str(option.num_nodes) if option.num_nodes > 1 else "",
        interval_text(step, lambda seconds: rate_text(seconds * 1e3)),
        interval_text(option.samples_per_s, rate_text),
        interval_text(option.speedup, times_text),
        interval_text(option.time_s, hours_text),
        interval_text(option.cost, money_text),
        interval_text(option.cost_per_million_samples, money_text),
        "-" if option.memory_bytes is None else f"{option.memory_bytes / 2**30:.1f}",
        option.kind,
    )
    return Row(cells, "" if option.kind == "carried over" else "dim")


def _paragraph(text: str, console: Console, *, style: str = "") -> None:
    lines = textwrap.wrap(printable(text), console.width, break_on_hyphens=False)
    console.print(Text("\n".join(lines), style=style), soft_wrap=True)
