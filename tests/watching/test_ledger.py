"""What counts as idle and low, for how long, at whose cost; and what does not count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpualloc.watching import DeviceSample, Price, WasteRule, find_waste
from gpualloc.watching.ledger import Ledger
from gpualloc.watching.waste import DeviceUse
from tests.watching.made_samples import GPU, HOST, START_UNIX_S, process, series

RULE = WasteRule()  # idle below 5 %, low below 40 %, for 10 min
MINUTE_S = 60.0


def only_device(*parts: tuple[float, float | None], **options: object) -> DeviceUse:
    (use,) = find_waste(series(*parts, **options), RULE).devices  # type: ignore[arg-type]
    return use


def spans(use: DeviceUse) -> list[tuple[str, float, float]]:
    """(kind, start, end) in minutes since the start."""
    return [(span.kind, (span.start_unix_s - START_UNIX_S) / 60, (span.end_unix_s - START_UNIX_S) / 60) for span in use.spans]


def test_an_idle_span_between_work_is_found_with_its_ends() -> None:
    use = only_device((600, 95.0), (1200, 0.0), (600, 95.0))
    assert spans(use) == [("idle", 10.0, 30.0)]
    assert (use.idle_s, use.low_s, use.observed_s) == (1200.0, 0.0, 2400.0)
    assert use.wasted_device_hours == pytest.approx(1200 / 3600)
    assert use.mean_utilisation_percent == pytest.approx(47.5)


@pytest.mark.parametrize(("seconds", "is_flagged"), [(540, False), (600, True), (660, True)])
def test_only_what_lasts_is_flagged(seconds: float, is_flagged: bool) -> None:
    assert bool(only_device((300, 80.0), (seconds, 1.0), (300, 80.0)).spans) == is_flagged


@pytest.mark.parametrize(("percent", "kind"), [(0.0, "idle"), (4.9, "idle"), (5.0, "low"), (39.9, "low"), (40.0, None), (100.0, None)])
def test_the_bars_themselves_are_good_enough(percent: float, kind: str | None) -> None:
    assert [span.kind for span in only_device((900, percent)).spans] == ([kind] if kind else [])


def test_low_time_wastes_the_unused_share_of_it() -> None:
    use = only_device((1800, 30.0))
    assert spans(use) == [("low", 0.0, 30.0)]
    assert use.wasted_device_hours == pytest.approx(0.5 * 0.7)


def test_a_job_that_waits_for_data_every_other_sample_is_low_and_not_idle() -> None:
    assert spans(only_device(*[(5, 60.0), (5, 0.0)] * 120)) == [("low", 0.0, 20.0)]
    assert spans(only_device(*[(5, 100.0), (5, 0.0)] * 120)) == []


def test_idle_within_low_is_told_apart() -> None:
    use = only_device((300, 30.0), (900, 0.0), (120, 20.0), (600, 90.0))
    assert spans(use) == [("low", 0.0, 5.0), ("idle", 5.0, 20.0), ("low", 20.0, 22.0)]
    assert (use.idle_s, use.low_s) == (900.0, 420.0)


def test_a_gap_is_not_idle_time_and_ends_a_span() -> None:
    before, after = series((480, 0.0)), series((480, 0.0), start_s=3600)
    after[0] = replace(after[0], covers_s=None)  # as the sampler says after a gap
    (use,) = find_waste([*before, *after], RULE).devices
    assert use.spans == ()  # neither 8 minutes, nor over an hour
    assert use.observed_s == 480 + 475
    long_before, long_after = series((600, 0.0)), series((660, 0.0), start_s=3600)
    (use,) = find_waste([*long_before, *long_after], RULE).devices
    assert spans(use) == [("idle", 0.0, 10.0), ("idle", 60.0, 71.0)]
    assert use.wasted_device_hours == pytest.approx(1260 / 3600)


def test_a_missed_sample_does_not_end_a_span_and_does_not_count() -> None:
    samples = series((900, 0.0))
    del samples[50]
    (use,) = find_waste(samples, RULE).devices
    assert spans(use) == [("idle", 0.0, 15.0)]
    assert use.idle_s == 895.0


def test_two_watches_of_one_gpu_count_once() -> None:
    one, other = series((1200, 0.0)), series((1200, 0.0), start_s=2.0)
    merged = sorted([*one, *other], key=lambda sample: sample.time_unix_s)
    (use,) = find_waste(merged, RULE).devices
    assert use.observed_s == pytest.approx(1202.0)
    assert use.wasted_device_hours == pytest.approx(1202 / 3600)
    assert use.energy_j == pytest.approx(3000.0 / 5 * 1202)


def test_a_clock_set_back_adds_no_time() -> None:
    samples = sorted([*series((600, 0.0)), *series((300, 0.0), start_s=120)], key=lambda sample: sample.time_unix_s)
    (use,) = find_waste(samples, RULE).devices
    assert use.observed_s == pytest.approx(600.0)


def test_unknown_utilisation_is_neither_idle_nor_busy() -> None:
    use = only_device((1200, None))
    assert (use.observed_s, use.unknown_s, use.mean_utilisation_percent, use.is_judged) == (0.0, 1200.0, None, False)
    assert spans(only_device((480, 0.0), (120, None), (480, 0.0))) == []


def test_long_intervals_fill_their_slots() -> None:
    assert spans(only_device((600, 90.0), (1200, 0.0), interval_s=300.0)) == [("idle", 10.0, 30.0)]


def test_a_short_rule_has_short_slots() -> None:
    rule = WasteRule(for_s=20.0)
    (use,) = find_waste(series((30, 90.0), (25, 0.0), (30, 90.0)), rule).devices
    (span,) = use.spans
    assert span.kind == "idle"
    assert span.observed_s == pytest.approx(25.0, abs=rule.slot_s * 2)


def test_means_are_over_time_and_unknown_figures_stay_out() -> None:
    samples = [*series((60, 100.0), power_w=700.0), *series((120, 10.0), start_s=60, power_w=None, energy_j=None, memory_used_bytes=2**30)]
    (use,) = find_waste(samples, RULE).devices
    assert use.mean_utilisation_percent == pytest.approx(40.0)
    assert use.mean_power_w == pytest.approx(700.0)
    assert use.energy_j == pytest.approx(12 * 3000.0)
    assert use.peak_memory_used_bytes == 40 * 2**30
    assert use.mean_memory_used_bytes == pytest.approx((40 * 60 + 120) / 180 * 2**30)
    nothing = only_device((60, None), power_w=None, energy_j=None, memory_used_bytes=None)
    assert (nothing.mean_power_w, nothing.energy_j, nothing.peak_memory_used_bytes) == (None, None, None)


def test_waste_goes_to_those_on_the_gpu_and_to_nobody_where_there_was_none() -> None:
    ada, bob = process(1, "ada"), process(2, "bob")
    samples = [
        *series((1200, 0.0), processes=(ada, bob)),
        *series((600, 0.0), start_s=1200, processes=(ada,)),
        *series((600, 0.0), start_s=1800, processes=()),
        *series((300, 0.0), start_s=2400, processes=None),
        *series((600, 90.0), start_s=2700, processes=(bob,)),
    ]
    found = find_waste(samples, RULE, Price(amount_per_hour=3.0, currency="EUR"))
    hours = {(row.who, row.user): row.wasted_device_hours * 60 for row in found.by_user}
    assert hours == pytest.approx({("user", "ada"): 20.0, ("user", "bob"): 10.0, ("nobody", None): 10.0, ("unknown", None): 5.0})
    assert (found.by_process[0].pid, found.by_process[0].who) == (1, "process")
    assert found.wasted_device_hours * 60 == pytest.approx(45.0)
    assert found.cost == pytest.approx(3.0 * 45 / 60)
    assert sum(row.cost or 0.0 for row in found.by_process) == pytest.approx(found.cost)
    assert sum(row.cost or 0.0 for row in found.by_user) == pytest.approx(found.cost)
    assert sum(device.cost or 0.0 for device in found.devices) == pytest.approx(found.cost)


def test_without_a_price_there_is_no_cost() -> None:
    found = find_waste(series((1200, 0.0)), RULE)
    assert [found.cost, *(device.cost for device in found.devices), *(row.cost for row in found.by_user)] == [None, None, None]


def test_a_pid_used_again_is_another_process() -> None:
    samples = [*series((600, 0.0), processes=(process(1),)), *series((600, 0.0), start_s=600, processes=(process(1, started_unix_s=5.0),))]
    assert [row.pid for row in find_waste(samples, RULE).by_process] == [1, 1]


def test_processes_are_summed_up_for_each_device() -> None:
    samples = [
        *series((600, 80.0), processes=(process(1, gpu_memory_bytes=10), process(2))),
        *series((600, 80.0), start_s=600, processes=(process(1, gpu_memory_bytes=30, sm_utilisation_percent=None, cpu_percent=51.0),)),
    ]
    first, second = find_waste(samples, RULE).processes
    assert (first.pid, first.observed_s, first.peak_gpu_memory_bytes, first.mean_sm_utilisation_percent) == (1, 1200.0, 30, 80.0)
    assert first.mean_cpu_percent == pytest.approx(76.0)
    assert (second.pid, second.observed_s) == (2, 600.0)


def test_a_host_is_judged_only_where_it_has_no_gpu() -> None:
    on_host = series((1200, 0.0), of=HOST)
    alone = find_waste(on_host, RULE)
    assert [span.kind for span in alone.devices[0].spans] == ["idle"]
    assert alone.wasted_device_hours == pytest.approx(1200 / 3600)
    assert alone.by_user == ()
    beside = find_waste([*series((1200, 90.0)), *on_host], RULE)
    assert [device.is_judged for device in beside.devices] == [True, False]
    assert beside.wasted_device_hours == 0.0
    assert beside.observed_device_hours == pytest.approx(1200 / 3600)
    elsewhere = find_waste([*series((1200, 90.0), host="node2"), *on_host], RULE)
    assert [device.is_judged for device in elsewhere.devices] == [True, True]
    assert elsewhere.wasted_device_hours == 0.0  # a host hour is no GPU-hour


def test_the_live_figures_follow_the_slots() -> None:
    ledger = Ledger(RULE)

    def run_over(samples: list[DeviceSample]) -> tuple[float, float]:
        for sample in samples:
            device = ledger.add(sample)
        return device.idle_run_s, device.low_run_s

    assert run_over(series((300, 0.0), (5, 0.0))) == (300.0, 0.0)  # low is a mean over ten minutes
    assert run_over(series((295, 0.0), (5, 30.0), start_s=305)) == (600.0, 600.0)
    assert run_over(series((115, 30.0), start_s=605)) == (0.0, 660.0)
    assert run_over(series((180, 90.0), (5, 90.0), start_s=720)) == (0.0, 900.0)  # of ten minutes three at 90 %
    assert run_over(series((120, 90.0), start_s=905)) == (0.0, 0.0)
    assert run_over(series((65, 0.0), start_s=6000)) == (60.0, 0.0)  # a gap begins anew


def test_live_low_time_begins_with_the_first_slot_below_the_bar() -> None:
    ledger = Ledger(RULE)
    for sample in series((600, 95.0), (425, 0.0)):
        device = ledger.add(sample)
    assert (device.idle_run_s, device.low_run_s) == (420.0, 420.0)  # the mean is low by now; the time in which it was busy is not


def test_bursts_do_not_break_low_time() -> None:
    use = only_device((600, 95.0), *[(180, 10.0), (60, 90.0)] * 10, (120, 10.0), (600, 95.0))
    assert spans(use) == [("low", 10.0, 52.0)]
    assert spans(only_device((600, 95.0), (480, 0.0), (600, 95.0))) == []  # too short, although the mean over ten minutes is below the bar
    assert spans(only_device((600, 95.0), (480, 0.0), (120, 95.0), (480, 0.0), (600, 95.0))) == [("low", 10.0, 28.0)]


def test_no_samples_no_devices() -> None:
    assert find_waste([], RULE).devices == ()
    (use,) = find_waste([replace(GPU, covers_s=None)], RULE).devices  # a start speaks for no time
    assert (use.observed_s, use.num_samples, use.is_judged) == (0.0, 1, False)
