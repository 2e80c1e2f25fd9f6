"""Which measurements an advice rests on: of one workload on one kind of device, each setting once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpualloc.errors import GpuallocError
from gpualloc.findings.rows import SIZE_FIELDS, has_nonfinite_loss, setting, usable_rows
from gpualloc.records import REHEARSAL, BenchCase, Measurement

_HOW_LONG = ("num_warmup_steps", "num_steps", "num_repeats", "seed")  # fields that do not change what a step does
_FAMILY = ("workload", "model", "tuning", "data", "device", "optimizer", "ranks_per_gpu")  # one advice is for one value of each
FILTERS = ("model", "precision", "strategy", "hook", "image_size_px", "sequence_length", "per_device_batch_size")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Rows that count, and what became of the others."""

    device_name: str
    rows: tuple[Measurement, ...]  # of all sizes, the newest of each setting
    failed: tuple[Measurement, ...]  # that ran out of memory or died, where no row that counts has their setting
    size: int  # pixels or tokens that the advice is for
    size_field: str  # "image_size_px" or "sequence_length"
    notes: tuple[str, ...]

    @property
    def at_size(self) -> tuple[Measurement, ...]:
        """The rows of that size."""
        return tuple(row for row in self.rows if getattr(row.case, self.size_field) == self.size)


def work_key(case: BenchCase, *, without: Collection[str] = ()) -> tuple[object, ...]:
    """Equal for cases whose steps do the same; a cluster to rehearse says nothing about one GPU."""
    dropped = {*_HOW_LONG, *without, *(REHEARSAL if case.world_size == 1 else ())}
    return tuple((name, value) for name, value in setting(case).items() if name not in dropped)


def select_evidence(
    history: Sequence[Measurement],
    *,
    only: Mapping[str, Collection[object]] | None = None,
    device_name: str | None = None,
) -> Evidence:
    """The rows of the newest workload that the filters leave.

    Args:
        history: measurements, the newest first.
        only: field of a case -> values to keep, of `FILTERS`.
        device_name: of the GPU; None: that of the newest row.

    Raises:
        GpuallocError: nothing is left; says what there is and what to measure.
    """
    only = only or {}
    workload_only = {name: values for name, values in only.items() if name == "model"}
    fitting = [row for row in history if _passes(row.case, workload_only) and _device(row) not in (None, "")]
    if device_name is not None:
        fitting = [row for row in fitting if str(_device(row)).casefold() == device_name.casefold()]
    newest = next((row for row in fitting if row.status == "ok"), None)
    if newest is None:
        raise GpuallocError(f"not enough evidence: {_what_there_is(history, only, device_name)}")
    same = [row for row in fitting if _device(row) == _device(newest) and _family(row.case) == _family(newest.case)]
    others = Counter(row.case.model for row in fitting if _device(row) == _device(newest) and _family(row.case) != _family(newest.case))
    wanted = [row for row in same if _passes(row.case, {name: values for name, values in only.items() if name not in SIZE_FIELDS})]
    rows, excluded = usable_rows(wanted)
    sound: dict[tuple[object, ...], Measurement] = {}
    trains = {_where(row.case) for row in rows if row.case.world_size == 1 and not has_nonfinite_loss(row)}
    num_diverged = 0
    for row in rows:
        if has_nonfinite_loss(row) and _where(row.case) in trains:
            num_diverged += 1
        else:
            sound.setdefault(work_key(row.case), row)
    field = "image_size_px" if newest.case.image_size_px is not None else "sequence_length"
    if not sound:
        why = ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "none in that setting"
        raise GpuallocError(
            f"not enough evidence: no measurement of {newest.case.model} on {_device(newest)} counts: {why}; "
            f"measure it next: gpualloc bench --model {newest.case.model} --strategy single,ddp"
        )
    size = _choose_size(list(sound.values()), field, only.get(field))
    notes = []
    if others:
        notes.append(
            f"other workloads in the store, name one with --model: {', '.join(f'{name} ({count})' for name, count in others.items())}"
        )
    sizes = sorted({int(getattr(row.case, field)) for row in sound.values()} - {size})
    if sizes:
        option = "--image-size" if field == "image_size_px" else "--sequence-length"
        notes.append(f"other sizes measured, choose with {option}: {', '.join(map(str, sizes))}")
    left_out = {**excluded, **({"with inf or NaN in the loss": num_diverged} if num_diverged else {})}
    left_out.pop("skipped", None)
    if left_out:
        notes.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))
    versions = sorted({row.environment.torch_version for row in sound.values() if row.environment is not None})
    if len(versions) > 1:
        notes.append(f"measured with different versions of torch: {', '.join(versions)}")
    failed: dict[tuple[object, ...], Measurement] = {}
    for row in wanted:
        if row.status in ("oom", "failed") and getattr(row.case, field) == size and work_key(row.case) not in sound:
            failed.setdefault(work_key(row.case), row)
    return Evidence(
        device_name=str(_device(newest)),
        rows=tuple(sound.values()),
        failed=tuple(failed.values()),
        size=size,
        size_field=field,
        notes=tuple(notes),
    )


def _choose_size(rows: Sequence[Measurement], field: str, asked: Collection[object] | None) -> int:
    """The one asked for; else that with the most numbers of ranks, of several the largest."""
    sizes = {int(getattr(row.case, field)) for row in rows}
    if asked is not None:
        wanted = [int(str(size)) for size in asked]
        missing = [size for size in wanted if size not in sizes]
        if missing:
            unit = "px" if field == "image_size_px" else "tokens"
            measured = ", ".join(map(str, sorted(sizes)))
            option = "--image-size" if field == "image_size_px" else "--sequence-length"
            raise GpuallocError(
                f"not enough evidence: nothing was measured at {missing[0]} {unit}, but at {measured}; "
                f"measure it next: gpualloc bench --model {rows[0].case.model} {option} {missing[0]}"
            )
        return wanted[0]
    counts = {size: len({row.case.world_size for row in rows if getattr(row.case, field) == size}) for size in sizes}
    return max(sizes, key=lambda size: (counts[size], size))


def _where(case: BenchCase) -> tuple[object, ...]:
    """A loss that diverges speaks against a setting where the same size and batch train in another one."""
    return case.image_size_px, case.sequence_length, case.per_device_batch_size


def _device(row: Measurement) -> str | None:
    return None if row.environment is None else row.environment.device_name


def _family(case: BenchCase) -> tuple[object, ...]:
    return tuple(getattr(case, name) for name in _FAMILY)


def _passes(case: BenchCase, only: Mapping[str, Collection[object]]) -> bool:
    """Whether the case has an allowed value of each field. A single process has no strategy or hook: others are held to it."""
    return all(
        getattr(case, name) in values or (name in ("strategy", "hook") and case.strategy == "single") for name, values in only.items()
    )


def _what_there_is(history: Sequence[Measurement], only: Mapping[str, Collection[object]], device_name: str | None) -> str:
    asked = ", ".join([*(f"{name} {'/'.join(map(str, values))}" for name, values in only.items()), *([device_name] if device_name else [])])
    models = sorted({row.case.model for row in history if row.status == "ok"})
    devices = sorted({str(_device(row)) for row in history if row.status == "ok" and _device(row)})
    model = next(iter(only.get("model", ())), None)
    command = f"gpualloc bench{'' if model is None else f' --model {model}'} --strategy single,ddp"
    if not models:
        return f"nothing was measured yet; measure it next: {command}"
    return f"nothing measured fits {asked}; there is {', '.join(models)} on {' and '.join(devices)}; measure it next: {command}"
