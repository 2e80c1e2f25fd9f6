"""Findings of made runs whose answers are known."""

from dataclasses import replace

import pytest

from gpualloc.findings import Findings, find
from gpualloc.findings.words import answers, threshold_text
from gpualloc.records import Measurement
from tests.findings.studied_runs import batches_run, details_run, single, study_run
from tests.store.sample_measurements import gpu_run, image_case, measured


def texts(findings: Findings) -> list[str]:
    return [threshold_text(threshold) for threshold in findings.thresholds]


def scaled(efficiency_of: dict[int, float], *, spread: float = 0.005, world_size: int = 4) -> list[Measurement]:
    rows = []
    for size, efficiency in efficiency_of.items():
        rows.append(measured(single(image_size_px=size), 0.02, spread=spread))
        rows.append(measured(image_case(image_size_px=size, world_size=world_size), 0.02 / efficiency, spread=spread))
    return rows


def test_the_studys_figures_come_out_as_the_study_says() -> None:
    said = answers(find(study_run()))
    assert "fp32 over fp64: 54 to 68% faster (all 5 comparisons)" in said["precision"]
    assert "fp16 over fp64: 110 to 152% faster (all 5 comparisons)" in said["precision"]
    assert "64 per rank: four GPUs pay from about 300 px (between 200 and 300 px)" in said["scaling"]
    assert "64 per rank: two GPUs pay from about 190 px (between 100 and 200 px)" in said["scaling"]


def test_intervals_hold_the_made_gains() -> None:
    by_size = {gain.case.image_size_px: gain for gain in find(study_run()).precision_gains if (gain.changed, gain.base) == ("fp16", "fp64")}
    assert {size: gain.verdict for size, gain in by_size.items()} == dict.fromkeys((100, 200, 300, 400, 500), "faster")
    for size, truth in ((100, 2.10), (500, 2.52)):
        speedup = by_size[size].speedup
        assert speedup.low is not None
        assert speedup.high is not None
        assert truth * 0.97 < speedup.low < truth < speedup.high < truth * 1.03


def test_no_difference_is_said_to_be_none() -> None:
    rows = [measured(single(precision="fp32"), 0.0201, spread=0.1), measured(single(precision="fp16"), 0.0200, spread=0.1)]
    (gain,) = find(rows).precision_gains
    assert gain.verdict == "no difference seen"
    assert answers(find(rows))["precision"] == ["fp16 over fp32: no difference seen, +0.5%"]


@pytest.mark.parametrize(
    ("efficiency_of", "text"),
    [
        ({100: 0.5, 200: 0.7, 300: 0.9}, "four GPUs pay from about 250 px (between 200 and 300 px)"),
        ({100: 0.9, 200: 0.95}, "four GPUs pay from 100 px on, the smallest measured"),
        ({100: 0.5, 500: 0.7}, "four GPUs do not pay up to 500 px, the largest measured"),
        ({100: 0.9, 200: 0.7, 300: 0.9}, "four GPUs pay from about 250 px (between 200 and 300 px)"),
        ({100: 0.9, 200: 0.7}, "four GPUs do not pay up to 200 px, the largest measured"),
        ({100: 0.5, 200: 0.8, 300: 0.9}, "four GPUs pay from about 200 px (between 100 and 300 px; 200 px too close to call)"),
        ({100: 0.5, 200: 0.8}, "four GPUs do not pay up to 100 px; 200 px too close to call"),
        ({100: 0.8, 200: 0.9}, "four GPUs pay from 200 px on at the latest; 100 px too close to call"),
        ({100: 0.8, 200: 0.8}, "not certain whether four GPUs pay up to 200 px, the largest measured"),
    ],
)
def test_thresholds(efficiency_of: dict[int, float], text: str) -> None:
    assert texts(find(scaled(efficiency_of))) == [text]


def test_the_bar_moves_the_threshold() -> None:
    rows = scaled({100: 0.5, 200: 0.7, 300: 0.9})
    assert texts(find(rows, min_efficiency=0.6)) == ["four GPUs pay from about 150 px (between 100 and 200 px)"]
    assert texts(find(rows, min_efficiency=0.95)) == ["four GPUs do not pay up to 300 px, the largest measured"]


def test_thresholds_of_batch_sizes() -> None:
    assert texts(find(batches_run())) == ["two GPUs pay from about 12 samples per rank (between 8 and 16 samples per rank)"]


def test_a_single_repeat_decides_nothing() -> None:
    rows = [replace(row, repeat_step_times_s=(row.step_time_s or 1.0,)) for row in study_run()]
    findings = find(rows)
    assert {gain.verdict for gain in findings.precision_gains} == {each.verdict for each in findings.efficiencies} == {"not certain"}
    assert texts(findings)[0] == "not certain whether two GPUs pay up to 500 px, the largest measured"
    assert find(rows).best[0].ties  # nothing is told apart


def test_details_as_ranks_grow() -> None:
    findings = find(details_run())
    assert [trend.verdict for trend in findings.detail_trends] == ["loses with more ranks", "no difference seen"]
    assert answers(findings)["details"] == [
        "pin_memory off instead of on: on 1 GPU, 2.0% slower; on 2 GPUs, 7.4% slower; on 4 GPUs, 17% slower; it loses with more ranks",
        "channels_last on instead of off: on 1 GPU, 5.0% faster; on 2 GPUs, 5.0% faster; on 4 GPUs, 5.0% faster; "
        "the same on any number, as far as seen",
    ]


def test_a_default_that_means_the_same_is_no_difference() -> None:
    rows = [measured(image_case(), 0.02), measured(image_case(pin_memory=True), 0.03)]  # on a GPU the default is True
    assert find(rows).detail_gains == ()


def test_accumulation_is_compared_by_samples() -> None:
    rows = [measured(image_case(), 0.02), measured(image_case(grad_accum_steps=4), 0.06)]
    (gain,) = find(rows).detail_gains
    assert gain.speedup.value == pytest.approx(4 / 3)


def test_the_best_setting_and_its_ties() -> None:
    rows = [
        measured(image_case(hook="none"), 0.0240),
        measured(image_case(hook="gpualloc_fp16"), 0.0201, spread=0.1),
        measured(image_case(hook="torch_fp16"), 0.0200, spread=0.1),
        measured(image_case(hook="gpualloc_int8"), 0.0100, loss_end=float("nan")),
    ]
    findings = find(rows)
    (best,) = findings.best
    assert (best.case.hook, [case.hook for case in best.ties]) == ("torch_fp16", ["gpualloc_fp16"])
    assert best.samples_per_s == pytest.approx(2 * 64 / 0.02, rel=0.01)
    assert findings.num_diverged == 1


@pytest.mark.parametrize("strategy", ["ddp_full_data", "tensor_parallel", "pipeline"])
def test_samples_that_all_ranks_read_count_once(strategy: str) -> None:
    repeated = image_case(strategy=strategy, hook="none")
    rows = [measured(single(), 0.02), measured(image_case(hook="none"), 0.022), measured(repeated, 0.02)]
    findings = find(rows)
    efficiency_of = {each.case.strategy: each.efficiency.value for each in findings.efficiencies}
    assert efficiency_of == {"ddp": pytest.approx(20 / 22, rel=0.01), strategy: pytest.approx(0.5, rel=0.01)}
    (best,) = findings.best
    assert (best.case.strategy, best.samples_per_s) == ("ddp", pytest.approx(2 * 64 / 0.022, rel=0.01))
    alone = find([measured(repeated, 0.02), measured(image_case(strategy=strategy, hook="none", precision="fp16"), 0.01)])
    assert alone.best[0].samples_per_s == pytest.approx(64 / 0.01, rel=0.01)


def test_what_does_not_count_is_counted() -> None:
    sound = scaled({100: 0.9, 200: 0.9})
    broken = [
        replace(sound[0], case=single(image_size_px=300), repeat_step_times_s=(0.0, 0.02)),
        replace(sound[0], case=single(image_size_px=400), repeat_step_times_s=(float("nan"), 0.02)),
        replace(sound[0], case=single(image_size_px=500), repeat_step_times_s=()),
    ]
    findings = find([*sound, *broken, *gpu_run()])
    assert findings.excluded == {"without usable times": 3, "failed": 1, "oom": 1, "skipped": 1}
    assert find([]).excluded == {}


def test_a_disturbed_measurement_does_not_count() -> None:
    rows = scaled({100: 0.9, 200: 0.9})
    object.__setattr__(rows[1], "disturbances", ("another process used the GPU",))
    findings = find(rows)
    assert findings.excluded == {"disturbed": 1}
    assert [each.case.image_size_px for each in findings.efficiencies] == [200]


def test_a_missing_baseline_is_counted() -> None:
    rows = [measured(image_case(), 0.02), measured(image_case(world_size=4), 0.02)]
    findings = find(rows)
    assert (findings.efficiencies, findings.num_without_baseline) == ((), 2)
    one_rank = measured(image_case(world_size=1), 0.019)
    assert [round(each.efficiency.value, 2) for each in find([*rows, one_rank]).efficiencies] == [0.95, 0.95]
    alone = measured(single(), 0.018)
    assert [round(each.efficiency.value, 2) for each in find([*rows, one_rank, alone]).efficiencies] == [0.9, 0.9]
