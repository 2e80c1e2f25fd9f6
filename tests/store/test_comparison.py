from dataclasses import replace

import pytest

from gpualloc.records import Measurement
from gpualloc.store import compare, environment_differences
from tests.store.sample_measurements import CPU_ENVIRONMENT, GPU_ENVIRONMENT, image_case, measured

CASE = image_case()


@pytest.mark.parametrize(
    ("step_time_s", "spread", "verdict"),
    [
        (0.090, 0.02, "faster"),
        (0.111, 0.02, "slower"),
        (0.101, 0.02, "not certain"),  # 99 to 101 ms against 100 to 102 ms
        (0.090, 0.30, "not certain"),  # a wide interval reaches back over A's
        (0.100, 0.00, "not certain"),
    ],
)
def test_verdict(step_time_s: float, spread: float, verdict: str) -> None:
    (row,) = compare([measured(CASE, 0.1)], [measured(CASE, step_time_s, spread=spread)]).compared
    assert row.verdict == verdict
    assert row.step_time_ratio == pytest.approx(step_time_s / 0.1)


def test_one_repeat_gives_no_verdict() -> None:
    once = replace(measured(CASE, 0.05, spread=0.0), repeat_step_times_s=(0.05,))
    assert compare([measured(CASE, 0.1)], [once]).compared[0].verdict == "not certain"


def test_a_case_without_figures_has_no_ratio() -> None:
    (row,) = compare([measured(CASE, 0.1)], [Measurement(case=CASE, status="oom")]).compared
    assert (row.step_time_ratio, row.verdict) == (None, "no figures")


def test_only_equal_cases_are_matched() -> None:
    a, b, seeded = measured(CASE, 0.1), measured(image_case(world_size=4), 0.1), measured(image_case(seed=1), 0.1)
    comparison = compare([a, b], [seeded, a])
    assert [row.case for row in comparison.compared] == [CASE]
    assert (comparison.only_in_a, comparison.only_in_b) == ((b.case,), (seeded.case,))


def test_environment_differences_leave_out_what_varies_anyway() -> None:
    warmer = replace(GPU_ENVIRONMENT, sm_clock_mhz=1, mem_clock_mhz=1, git_revision="x")
    assert environment_differences(GPU_ENVIRONMENT, warmer) == []
    assert environment_differences(GPU_ENVIRONMENT, replace(warmer, torch_version="2.14.0")) == ["torch_version: 2.13.0+cu130 -> 2.14.0"]
    assert "device_name: NVIDIA H200 -> AMD EPYC 7763 64-Core Processor" in environment_differences(GPU_ENVIRONMENT, CPU_ENVIRONMENT)
    assert environment_differences(None, GPU_ENVIRONMENT) == ["the environment of one run cannot be read"]
