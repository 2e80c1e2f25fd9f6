"""What cases are called beside each other: what they share is said once, what differs in each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gpualloc.records import BenchCase

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNITS = {"image_size_px": "px", "sequence_length": "tokens", "per_device_batch_size": "samples per rank"}


def parts(case: BenchCase) -> dict[str, str]:
    """The case in words: column name -> text, in the order they are shown."""
    is_hooked = case.strategy == "ddp" or case.hook != "none"
    details = [name if value is True else f"{name}={value}" for name, value in case.details().items()]
    return {
        "model": case.model,
        "size": f"{case.image_size_px} px" if case.image_size_px is not None else f"{case.sequence_length} tokens",
        "batch": f"{case.per_device_batch_size} per rank",
        "precision": case.precision,
        "how": f"{case.strategy}/{case.hook}" if is_hooked else case.strategy,
        "ranks": ranks_text(case),
        "details": " ".join(details),
    }


def split_parts(rows: Sequence[Mapping[str, str]], *, without: Collection[str] = ()) -> tuple[str, list[str]]:
    """(what all rows share, in words; names of the parts in which they differ). "" is not said."""
    names = [name for name in rows[0] if name not in without]
    differing = [name for name in names if len({row[name] for row in rows}) > 1]
    return ", ".join(rows[0][name] for name in names if name not in differing and rows[0][name]), differing


def count_text(count: int) -> str:
    """ "four"; in digits above ten."""
    return _COUNTS[count] if count < len(_COUNTS) else str(count)


def ranks_text(case: BenchCase) -> str:
    """ "4 GPUs", or "2 ranks" where a rank is not a GPU."""
    return f"{case.world_size} {device_noun(case)}"


def device_noun(case: BenchCase) -> str:
    """ "GPU" or "GPUs"; "rank" or "ranks" on a CPU and where several share a GPU."""
    is_gpu = case.device == "cuda" and case.ranks_per_gpu == 1
    return ("GPU" if is_gpu else "rank") + ("" if case.world_size == 1 else "s")


def gain_text(speedup: float | None) -> str:
    """1.54 -> "+54%", 0.987 -> "-1.3%"."""
    if speedup is None:
        return "?"
    percent = (speedup - 1) * 100
    return f"{percent:+.0f}%" if abs(percent) >= 9.95 else f"{percent:+.1f}%"
