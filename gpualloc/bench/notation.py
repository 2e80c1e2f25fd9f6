"""The grid language: what is written on the command line or in a study file -> the fields of `BenchOptions`.

A list is `100,200`; a range is `100..500:100`, from the first value to the last one in steps (of 1 where none is given).
Numbers of GPUs may also be `all` and `1..all`. What is switched on and off is written `on`, `off` or `on,off`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpualloc.errors import UsageError

_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?::(\d{1,18}))?")
_GPU_COUNTS = re.compile(r"all|\d+\.\.all(?::\d+)?")  # resolved once the machine is known
_SWITCHES = {"on": True, "off": False}
_MAX_VALUES = 10_000  # of one range


class Notation(NamedTuple):
    """Where an option goes and how it is read."""

    field: str  # of BenchOptions
    parse: Callable[[str, str], Any]  # (option, text) -> value


def parse_names(option: str, text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    names = tuple(part.strip() for part in text.split(","))
    if "" in names:
        raise UsageError(f"{option} {text!r} has an empty entry; give one value or several with single commas between")
    return names


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """ "1,4..8:2" -> (1, 4, 6, 8)."""
    return tuple(number for part in parse_names(option, text) for number in _parse_part(option, part, text))


def parse_gpu_counts(option: str, text: str) -> tuple[int | str, ...]:
    """ "1,2..all" -> (1, "2..all"): `resolve_gpu_counts` does the rest."""
    counts: list[int | str] = []
    for part in parse_names(option, text):
        counts += [part] if _GPU_COUNTS.fullmatch(part) else _parse_part(option, part, text)
    return tuple(counts)


def resolve_gpu_counts(counts: tuple[int | str, ...], num_gpus: int) -> tuple[int, ...]:
    """With `all` as `num_gpus`; duplicates go."""
    resolved: list[int] = []
    for count in counts:
        resolved += parse_numbers("--gpus", count.replace("all", str(num_gpus))) if isinstance(count, str) else [count]
    return tuple(dict.fromkeys(resolved))


def parse_switches(option: str, text: str) -> tuple[bool, ...]:
    """ "on,off" -> (True, False)."""
    names = parse_names(option, text)
    for name in names:
        if name not in _SWITCHES:
            raise UsageError(f"{option} {name!r} is unknown; choose on, off or on,off")
    return tuple(_SWITCHES[name] for name in names)


def _parse_text(option: str, text: str) -> str:
    return text


def _parse_number(option: str, text: str) -> int:
    numbers = parse_numbers(option, text)
    if len(numbers) != 1:
        raise UsageError(f"{option} {text!r} is several values; give one")
    return numbers[0]


NOTATIONS: Mapping[str, Notation] = {
    "workload": Notation("workloads", parse_names),
    "model": Notation("models", parse_names),
    "image_size": Notation("image_sizes_px", parse_numbers),
    "sequence_length": Notation("sequence_lengths", parse_numbers),
    "batch_size": Notation("per_device_batch_sizes", parse_numbers),
    "precision": Notation("precisions", parse_names),
    "strategy": Notation("strategies", parse_names),
    "hook": Notation("hooks", parse_names),
    "data": Notation("data", _parse_text),
    "tuning": Notation("tunings", parse_names),
    "optimizer": Notation("optimizers", parse_names),
    "pin_memory": Notation("pin_memory", parse_switches),
    "non_blocking": Notation("non_blocking", parse_switches),
    "num_workers": Notation("num_workers", parse_numbers),
    "channels_last": Notation("channels_last", parse_switches),
    "compile": Notation("compile", parse_switches),
    "grad_accum": Notation("grad_accum_steps", parse_numbers),
    "activation_checkpointing": Notation("activation_checkpointing", parse_switches),
    "gpus": Notation("num_gpus", parse_gpu_counts),
    "rehearse": Notation("rehearse", parse_numbers),
    "gpus_per_node": Notation("gpus_per_node", _parse_number),
    "link": Notation("link", _parse_text),
    "network": Notation("network", _parse_text),
    "ranks_per_gpu": Notation("ranks_per_gpu", _parse_number),
    "warmup_steps": Notation("num_warmup_steps", _parse_number),
    "steps": Notation("num_steps", _parse_number),
    "repeats": Notation("num_repeats", _parse_number),
    "seed": Notation("seed", _parse_number),
}


def parse_options(written: Mapping[str, object]) -> dict[str, Any]:
    """Option name -> what was written, as text, number, truth value or list of these; None: not given. Gives fields of `BenchOptions`.

    Raises:
        UsageError: naming the option, what was written and what is allowed.
    """
    fields = {}
    for name, value in written.items():
        if value is not None:
            notation = NOTATIONS[name]
            fields[notation.field] = notation.parse(f"--{name.replace('_', '-')}", _as_text(value))
    return fields


def _as_text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_text, value))
    if isinstance(value, bool):  # as YAML reads on and off
        return "on" if value else "off"
    return str(value)


def _parse_part(option: str, part: str, text: str) -> list[int]:
    found = _RANGE.fullmatch(part)
    if found is None:
        try:
            return [int(part)]
        except ValueError:
            raise UsageError(
                f"{option} {text!r} is not a list of whole numbers; give for example {option} 1,2 or the range {option} 2..8:2"
            ) from None
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if first > last or step == 0 or (last - first) // step >= _MAX_VALUES:
        raise UsageError(f"{option} {part} is not a range; write FIRST..LAST or FIRST..LAST:STEP with FIRST up to LAST and STEP 1 or more")
    return list(range(first, last + 1, step))
