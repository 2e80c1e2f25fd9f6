"""In which order cases run, so that drift favours none of those that are compared, and the most informative come first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gpualloc.bench.grid import GridCell
from gpualloc.records import DETAILS, BenchCase

_NUMERIC_AXES = ("image_size_px", "sequence_length", "per_device_batch_size", "num_workers", "grad_accum_steps")
_NAMED_AXES = ("precision", "strategy", "hook", "data", *(name for name in DETAILS if name not in _NUMERIC_AXES))


def make_schedule(cells: Sequence[GridCell], *, rounds: int, seed: int, by_information: bool) -> list[int]:
    """Indices of the cells in the order they run, a runnable one once a round.

    One round keeps the order of the cells. Of more, each group of cases that are compared with each other (those of one model, size,
    batch size and data) goes through all its rounds before the next group starts: every odd round in a shuffled order, every
    even one in that of the round before turned round, so that what drifts steadily adds the same to all of them.

    Args:
        cells: in the order of the grid.
        rounds: groups of fresh processes for each case.
        seed: of the shuffling.
        by_information: the most informative first: groups within a tier of `information_tiers`, tier by tier.
    """
    tiers = information_tiers([cell.case for cell in cells]) if by_information else [0] * len(cells)
    groups: dict[Any, list[int]] = {}
    for index in sorted(range(len(cells)), key=lambda index: tiers[index]):
        groups.setdefault((tiers[index], _comparison_group(cells[index].case)), []).append(index)
    shuffle = random.Random(seed).shuffle
    order: list[int] = []
    for group in groups.values():
        runnable = [index for index in group if cells[index].skip_reason is None]
        if rounds == 1:
            order += group
            continue
        order += [index for index in group if cells[index].skip_reason is not None]
        for number in range(rounds):
            if number % 2 == 0:
                shuffle(runnable)
            else:
                runnable.reverse()
            order += runnable
    return order


def information_tiers(cases: Sequence[BenchCase]) -> list[int]:
    """For each case how many steps it is from its model's baseline; low tiers say most about the grid.

    The baseline has the first value of every axis, as written. A step is another name, the other end of an axis of numbers, or on
    such an axis one more halving of what lies between: for 100, 200, 300, 400, 500 px the steps are 0, 3, 2, 3, 1. So after the
    baselines come the effects of one axis at a time, then of two together and the middles. Of numbers of ranks the largest counts as
    the first.
    """
    levels: dict[tuple[str, str], dict[Any, int]] = {}
    for model in {case.model for case in cases}:
        of_model = [case for case in cases if case.model == model]
        for axis in (*_NUMERIC_AXES, *_NAMED_AXES):
            values = list(dict.fromkeys(getattr(case, axis) for case in of_model))
            levels[model, axis] = (
                _halving_levels(values) if axis in _NUMERIC_AXES else {value: int(i > 0) for i, value in enumerate(values)}
            )
        for strategy in {case.strategy for case in of_model}:
            sizes = sorted({case.world_size for case in of_model if case.strategy == strategy}, reverse=True)
            levels[model, f"world_size of {strategy}"] = _halving_levels(list(sizes))
    return [
        sum(levels[case.model, axis][getattr(case, axis)] for axis in (*_NUMERIC_AXES, *_NAMED_AXES))
        + levels[case.model, f"world_size of {case.strategy}"][case.world_size]
        for case in cases
    ]


def _halving_levels(values: list[Any]) -> dict[Any, int]:
    """First value 0, last one 1, the middle between neighbours of lower levels one more than the higher of them, from 2 on."""
    levels = {values[0]: 0, values[-1]: 1} if len(values) > 1 else dict.fromkeys(values, 0)
    spans = [(0, len(values) - 1)]
    level = 2
    while spans:
        halves = []
        for low, high in spans:
            middle = (low + high) // 2
            if middle > low:
                levels[values[middle]] = level
                halves += [(low, middle), (middle, high)]
        spans = halves
        level += 1
    return levels


def _comparison_group(case: BenchCase) -> tuple[Any, ...]:
    return (case.model, case.image_size_px, case.sequence_length, case.per_device_batch_size, case.data)
