"""The order of cases: balanced rounds, and the most informative first."""

from __future__ import annotations

import itertools
from collections import Counter

from gpualloc.bench.grid import GridCell
from gpualloc.bench.schedule import information_tiers, make_schedule
from tests.bench.cases import tiny_case

HOOKS = ("none", "torch_fp16", "gpualloc_fp16", "gpualloc_bf16")
CELLS = [GridCell(tiny_case(hook=hook, image_size_px=size), None) for size in (32, 64) for hook in HOOKS]


def test_one_round_keeps_the_order() -> None:
    assert make_schedule(CELLS, rounds=1, seed=0, by_information=False) == list(range(8))


def test_steady_drift_adds_the_same_to_all_cases_of_a_group() -> None:
    schedule = make_schedule(CELLS, rounds=2, seed=0, by_information=False)
    assert Counter(schedule) == dict.fromkeys(range(8), 2)
    assert set(schedule[:8]) == {0, 1, 2, 3}  # a group ends before the next one starts
    for group in (range(4), range(4, 8)):
        times = {index: [time for time, ran in enumerate(schedule) if ran == index] for index in group}
        assert len({sum(both) for both in times.values()}) == 1


def test_the_seed_decides_which_case_comes_first() -> None:
    firsts = {make_schedule(CELLS, rounds=2, seed=seed, by_information=False)[0] for seed in range(20)}
    assert firsts == {0, 1, 2, 3}
    assert make_schedule(CELLS, rounds=4, seed=3, by_information=False) == make_schedule(CELLS, rounds=4, seed=3, by_information=False)


def test_a_skipped_case_comes_once() -> None:
    cells = [CELLS[0], GridCell(CELLS[1].case, "made up"), CELLS[2]]
    assert Counter(make_schedule(cells, rounds=3, seed=0, by_information=False)) == {0: 3, 1: 1, 2: 3}


def test_information_baseline_then_one_axis_then_two_and_middles() -> None:
    cases = [
        tiny_case(image_size_px=size, precision=precision, channels_last=memory_format)
        for size, precision, memory_format in itertools.product((100, 200, 300, 400, 500), ("fp32", "bf16"), (False, True))
    ]
    tiers = dict(zip([(case.image_size_px, case.precision, case.channels_last) for case in cases], information_tiers(cases), strict=True))
    assert [tiers[size, "fp32", False] for size in (100, 500, 300, 200, 400)] == [0, 1, 2, 3, 3]
    assert tiers[100, "bf16", False] == tiers[100, "fp32", True] == 1
    assert tiers[500, "bf16", False] == tiers[100, "bf16", True] == 2
    assert tiers[500, "bf16", True] == 3
    schedule = make_schedule([GridCell(case, None) for case in cases], rounds=1, seed=0, by_information=True)
    in_order = [information_tiers(cases)[index] for index in schedule]
    assert in_order == sorted(in_order)


def test_each_model_has_a_baseline_and_the_largest_world_comes_first() -> None:
    cases = [
        tiny_case(strategy="single", world_size=1),
        *(tiny_case(world_size=world_size) for world_size in (1, 2, 4)),
        tiny_case(model="gpt_small", workload="llm", image_size_px=None, sequence_length=16, strategy="single", world_size=1),
    ]
    assert information_tiers(cases) == [0, 2, 3, 1, 0]
