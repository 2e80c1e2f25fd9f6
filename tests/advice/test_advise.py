"""The whole answer on made measurements, with figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpualloc.advice import Advice, make_job
from gpualloc.advice.records import Option, RentOf
from gpualloc.advice.words import crossing_text
from gpualloc.errors import GpuallocError, InfeasibleError, UsageError
from gpualloc.records import Measurement
from tests.advice.made_runs import EFFICIENCIES, EIGHT_GPUS, FP16_S, advice_on, evidence_of, row, scaling_run, single
from tests.findings.studied_runs import batches_run, study_run
from tests.store.sample_measurements import image_case, llm_case

JOB = {"dataset_size": 1_152_000, "epochs": 10}  # 11,520,000 samples


def option(advice: Advice, num_gpus: int, precision: str = "fp16") -> Option:
    return next(each for each in advice.options if (each.num_gpus, each.case.precision) == (num_gpus, precision))


def test_time_cost_and_choice_by_hand() -> None:
    """Four GPUs: 4 x 160 x 0.875 = 560 samples/s, so 5.714 hours, 22.86 GPU-hours, 45.71 EUR."""
    advice = advice_on(scaling_run(), job=JOB)
    chosen = advice.chosen
    assert chosen is not None
    assert (chosen.num_gpus, chosen.case.precision, chosen.source) == (4, "fp16", "measured")
    assert chosen.samples_per_s is not None
    assert chosen.samples_per_s.value == pytest.approx(560, rel=1e-3)
    assert chosen.time_s is not None
    assert chosen.time_s.value == pytest.approx(11_520_000 / 560, rel=1e-3)
    assert chosen.cost is not None
    assert chosen.cost.value == pytest.approx(45.71, abs=0.05)
    assert chosen.cost.low is not None
    assert chosen.cost.high is not None
    assert chosen.cost.low < chosen.cost.value < chosen.cost.high
    assert chosen.cost_per_epoch is not None
    assert chosen.cost_per_epoch.value == pytest.approx(4.571, abs=0.005)
    assert chosen.cost_per_million_samples is not None
    assert chosen.cost_per_million_samples.value == pytest.approx(4 * 2 / 3600 / 560 * 1e6, rel=1e-3)
    assert chosen.speedup is not None
    assert chosen.speedup.value == pytest.approx(3.5, rel=1e-3)
    assert option(advice, 8).why == "below 80% efficiency"
    assert option(advice, 2).why == "46% slower"  # 304 of 560
    assert advice.is_certain
    yes, follows, sure = advice.answer
    assert yes.startswith("Yes, train mobilenet_v2 at 200 px on 4 GPUs (ddp/none, fp16, 64 per GPU): 3.50x")
    assert "First precision fp32 -> fp16 (+60%); the job (10 epochs of 1,152,000 samples) takes 5.7 h" in follows
    assert "instead of 32 h and 64.01 EUR on one GPU as it is (single, fp32, 64 per GPU)" in follows
    assert sure.startswith("Certain")


def test_the_value_of_an_hour_that_turns_the_answer_is_exact() -> None:
    advice = advice_on(scaling_run(), job=JOB)
    turn = next(turn for turn in advice.turns if turn.what == "value of an hour")
    alone_h, four_h = 11_520_000 / 160 / 3600, 11_520_000 / 560 / 3600
    assert turn.turns_at == pytest.approx((2 * 4 * four_h - 2 * alone_h) / (alone_h - four_h), rel=1e-2)


def test_more_gpus_are_judged_by_the_fastest_setting_of_one() -> None:
    """Four GPUs in fp32 scale well because one is slow: what is not faster per GPU is not chosen, and fp16 is to be measured there."""
    rows = [row(single(precision="fp32"), 0.64), row(single(), 0.40), row(image_case(precision="fp32", world_size=4), 0.64 / 0.95)]
    advice = advice_on(rows, job=JOB)
    assert advice.chosen is not None
    assert (advice.chosen.num_gpus, advice.chosen.case.precision) == (1, "fp16")
    assert option(advice, 4, "fp32").why == "59% of the fastest setting"
    assert not advice.is_certain
    assert advice.answer[0].startswith("Not known whether more GPUs pay")
    assert "--precision fp16 --strategy single,ddp --gpus 4" in advice.measure_next[0]


def test_a_deadline_takes_the_cheapest_that_meets_it() -> None:
    advice = advice_on(scaling_run(), job={**JOB, "deadline_s": 4 * 3600})
    assert advice.chosen is not None
    assert advice.chosen.num_gpus == 8  # 896 samples/s: 3.57 h
    assert option(advice, 4).why == "misses the deadline"
    assert next(turn for turn in advice.turns if turn.what == "load in time").turns_at == pytest.approx(
        4 / (11_520_000 / 896 / 3600), rel=1e-3
    )
    relaxed = advice_on(scaling_run(), job={**JOB, "deadline_s": 40 * 3600})
    assert relaxed.chosen is not None
    assert relaxed.chosen.num_gpus == 1


def test_a_budget_takes_the_fastest_within_it() -> None:
    advice = advice_on(scaling_run(), job={**JOB, "budget": 50})
    assert advice.chosen is not None
    assert advice.chosen.num_gpus == 4
    assert option(advice, 8).why == "over the budget"
    price = next(turn for turn in advice.turns if turn.what == "price")
    assert price.turns_at == pytest.approx(50 / (4 * 11_520_000 / 560 / 3600), rel=1e-3)


def test_what_cannot_be_met_is_infeasible_and_says_what_is_nearest() -> None:
    with pytest.raises(InfeasibleError, match=r"the deadline is 1.00 h and the fastest option, 8 x ddp in fp16, takes 3.5\d h"):
        advice_on(scaling_run(), job={**JOB, "deadline_s": 3600})
    with pytest.raises(InfeasibleError, match=r"the cheapest option, 1 x single in fp16, costs 40.\d\d"):
        advice_on(scaling_run(), job={**JOB, "budget": 10})
    with pytest.raises(InfeasibleError, match="the budget cannot be kept without a price"):
        advice_on(scaling_run(), job={**JOB, "budget": 10}, rent=None)


def test_without_a_price_or_a_size_there_is_no_cost() -> None:
    unpriced = advice_on(scaling_run(), job=JOB, rent=None, why_no_price="no price is known")
    assert all(each.cost is None and each.cost_per_million_samples is None for each in unpriced.options)
    assert unpriced.turns == ()
    unsized = advice_on(scaling_run())
    assert all(each.cost is None and each.time_s is None for each in unsized.options)
    assert all(each.cost_per_million_samples is not None for each in unsized.options)


def test_steps_come_in_order_with_what_each_gains() -> None:
    rows = [*scaling_run(), row(single(channels_last=True), FP16_S / 1.002), row(single(pin_memory=False), FP16_S * 1.1)]
    rows.append(row(image_case(world_size=4, hook="gpualloc_fp16"), FP16_S / 0.8))
    advice = advice_on(rows)
    steps = {step.name: step for step in advice.steps}
    assert list(steps) == ["batch size", "precision", "pin_memory", "channels_last", "more GPUs", "strategy"]
    assert steps["batch size"].decision == "measure"
    assert "--batch-size 64,128,256" in str(steps["batch size"].command)
    assert (steps["precision"].decision, steps["precision"].change) == ("do", "fp32 -> fp16")
    assert steps["precision"].gain is not None
    assert steps["precision"].gain.value == pytest.approx(1.6, rel=1e-3)
    assert steps["pin_memory"].decision == "leave"
    assert "no difference seen" in steps["channels_last"].reason
    rule = steps["more GPUs"].rule
    assert rule is not None
    assert (rule.factor, rule.from_batch_size, rule.to_batch_size) == (4, 64, 256)
    assert "Goyal" in rule.source
    assert steps["strategy"].decision == "leave"
    assert "gpualloc_fp16" in steps["strategy"].reason


def test_a_larger_batch_that_is_faster_comes_first_with_its_rule() -> None:
    rows = [row(single(per_device_batch_size=32, precision="fp32"), 0.4), row(single(precision="fp32"), 0.64)]
    advice = advice_on(rows)
    step = advice.steps[0]
    assert (step.name, step.decision, step.change) == ("batch size", "do", "32 -> 64")
    assert step.gain is not None
    assert step.gain.value == pytest.approx(1.25, rel=1e-3)
    assert step.rule is not None
    assert step.rule.factor == 2


def test_thresholds_of_the_study_have_intervals() -> None:
    """Four GPUs cross 80 % at 298 px, between 62 % at 200 px and 80.6 % at 300 px."""
    texts = [crossing_text(crossing) for crossing in advice_on(study_run()).crossings]
    four = next(text for text in texts if text.startswith("4 GPUs"))
    assert four == "4 GPUs keep 80% efficiency from 297 px [294, 299] at batch 64"
    crossing = next(each for each in advice_on(study_run()).crossings if each.case.world_size == 4)
    assert crossing.value == pytest.approx(200 + 100 * (0.8 - 0.62) / (0.806 - 0.62), abs=0.5)


def test_thresholds_by_batch_size() -> None:
    (crossing,) = advice_on(batches_run()).crossings
    assert crossing.axis == "per_device_batch_size"
    assert crossing.value == pytest.approx(12, abs=0.1)
    assert "samples per rank" in crossing_text(crossing)
    assert crossing_text(crossing).endswith("at 1024 tokens")


def test_thresholds_by_sequence_length() -> None:
    """60 % at 512 tokens, 90 % at 2048: 80 % at 1536."""
    rows = []
    for tokens, efficiency in ((512, 0.6), (2048, 0.9)):
        alone = llm_case(strategy="single", world_size=1, sequence_length=tokens)
        rows += [row(alone, tokens * 1e-4), row(llm_case(sequence_length=tokens), tokens * 1e-4 / efficiency)]
    (crossing,) = advice_on(rows).crossings
    assert crossing.axis == "sequence_length"
    assert crossing.value == pytest.approx(1536, abs=3)
    assert crossing_text(crossing).startswith("2 GPUs keep 80% efficiency from 1536 tokens [")
    assert crossing_text(crossing).endswith("at batch 8")


def test_strong_scaling_divides_one_batch() -> None:
    """128 samples on one GPU in 0.8 s, on two with 64 each in 0.5 s: 1.6 times as fast."""
    rows = [
        row(single(per_device_batch_size=128), 0.8),
        row(single(per_device_batch_size=64), 0.42),
        row(image_case(world_size=2, per_device_batch_size=64), 0.5),
        row(image_case(world_size=2, per_device_batch_size=128), 0.9),
    ]
    advice = advice_on(rows, job={"global_batch_size": 128, "steps": 9000})
    assert {(each.num_gpus, each.case.per_device_batch_size) for each in advice.options} == {(1, 128), (2, 64)}
    two = option(advice, 2)
    assert two.speedup is not None
    assert two.speedup.value == pytest.approx(1.6, rel=1e-3)
    assert two.time_s is not None
    assert two.time_s.value == pytest.approx(4500, rel=1e-3)
    assert not any(step.name == "batch size" for step in advice.steps)
    assert next(step for step in advice.steps if step.name == "more GPUs").rule is None  # the global batch stays


def test_a_global_batch_that_no_case_takes_is_not_enough_evidence() -> None:
    advice = advice_on(scaling_run(), job={"global_batch_size": 1000, "steps": 10})
    assert advice.chosen is None
    assert advice.options == ()
    assert "--batch-size 1000,500,250,125" in advice.measure_next[0]
    assert advice.answer[0].startswith("Not enough evidence; measure next: gpualloc bench")


def test_a_rehearsal_is_marked_and_carries_its_own_error() -> None:
    cluster = {"gpus_per_node": 8, "link": "nvlink4"}
    rows = [row(single(), FP16_S), row(image_case(world_size=8, **cluster), FP16_S / 0.9)]
    advice = advice_on(rows)
    eight = option(advice, 8)
    assert eight.source == "rehearsed"
    assert eight.efficiency is not None
    assert eight.efficiency.value == pytest.approx(0.9, rel=1e-3)
    assert eight.efficiency.low is not None
    assert eight.efficiency.low == pytest.approx(0.9 / 1.246, rel=1e-2)  # exp(0.22)
    assert not advice.is_certain
    assert "the choice is rehearsed, not measured" in advice.answer[-1]
    assert advice.measure_next[0].endswith("--hook none --gpus 8")  # the machine has eight


def test_what_ran_out_of_memory_is_considered_and_not_chosen() -> None:
    dead = Measurement(case=single(per_device_batch_size=512), status="oom", reason="rank 0", environment=EIGHT_GPUS)
    advice = advice_on([*scaling_run(), dead])
    lost = next(each for each in advice.options if each.case.per_device_batch_size == 512)
    assert (lost.memory.fits, lost.why, lost.samples_per_s) == (False, "ran out of memory", None)


def test_noise_is_a_close_call_and_names_what_to_measure() -> None:
    rows = [row(single(), FP16_S, spread=0.1), row(image_case(world_size=2), FP16_S / 0.81, spread=0.1)]
    advice = advice_on(rows)
    assert not advice.is_certain
    assert "is too close to 80%" in advice.answer[-1]
    assert "--gpus 2 --rounds 4" in advice.measure_next[0]


def test_slices_of_a_gpu_are_not_more_gpus() -> None:
    halves = {"ranks_per_gpu": 2}
    rows = [row(single(**halves), FP16_S), row(image_case(world_size=2, **halves), FP16_S / 0.81, spread=0.1)]
    advice = advice_on(rows, rent=None)
    assert {each.num_gpus for each in advice.options} == {1, 2}
    assert "2 ranks" in advice.answer[0]
    assert "--gpus 1 --ranks-per-gpu 2 --rounds 4" in advice.measure_next[0]


def test_one_gpu_alone_says_nothing_of_more() -> None:
    advice = advice_on([row(single(), FP16_S)])
    assert advice.chosen is not None
    assert advice.chosen.why == "the fastest on one; more are not known"
    assert advice.answer[0].startswith("Not known whether more GPUs pay for mobilenet_v2 at 200 px: none were measured.")


def test_evidence_names_what_there_is() -> None:
    with pytest.raises(GpuallocError, match="nothing was measured yet; measure it next: gpualloc bench --strategy single,ddp"):
        evidence_of([])
    with pytest.raises(GpuallocError, match=r"nothing measured fits model vit_b; there is mobilenet_v2 on NVIDIA H100"):
        evidence_of(scaling_run(), model="vit_b")
    with pytest.raises(GpuallocError, match="nothing was measured at 300 px, but at 200"):
        evidence_of(scaling_run(), image_size_px=300)


def test_disturbed_measurements_do_not_count() -> None:
    rows = [row(single(), FP16_S, disturbances=("busy",)), row(image_case(), FP16_S, disturbances=("busy",))]
    with pytest.raises(GpuallocError, match="no measurement of mobilenet_v2 on NVIDIA H100 80GB HBM3 counts: 2 disturbed"):
        evidence_of(rows)


def test_the_newest_of_each_setting_counts_and_other_workloads_are_named() -> None:
    old, new = row(single(), 0.9), row(single(num_repeats=7), FP16_S)
    evidence = evidence_of([row(single(model="resnet50"), 1.0), old, new])
    assert [each.step_time_s for each in evidence.rows] == [FP16_S]
    assert any("resnet50 (1)" in note for note in evidence.notes)


def test_a_diverged_precision_is_left_out_where_another_trains() -> None:
    advice = advice_on([row(single(precision="fp32"), 0.64), row(single(), 0.4, loss_end=float("nan"))])
    assert {each.case.precision for each in advice.options} == {"fp32"}
    assert any("1 with inf or NaN in the loss" in note for note in advice.notes)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"dataset_size": 0}, "--dataset-size 0 is out of range"),
        ({"epochs": 3}, "--epochs needs the samples of one"),
        ({"dataset_size": 10, "epochs": 1, "steps": 5}, "--steps and --epochs both"),
        ({"deadline_s": 60}, "needs the size of the job"),
        ({"steps": 5, "budget": -1}, "--budget -1 is out of range"),
        ({"steps": 5, "budget": float("nan")}, "--budget nan is out of range"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(job: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_job(**job)


@settings(max_examples=25, deadline=None)
@given(price=st.floats(0.01, 100), factor=st.floats(1.01, 50))
def test_cost_rises_with_the_price_and_the_choice_stays(price: float, factor: float) -> None:
    def at(amount: float) -> Advice:
        return advice_on(scaling_run(), job=JOB, rent=RentOf(amount_per_gpu_hour=amount, currency="EUR", described="", is_example=False))

    cheap, dear = at(price), at(price * factor)
    for one, other in zip(cheap.options, dear.options, strict=True):
        assert one.cost is not None
        assert other.cost is not None
        assert other.cost.value == pytest.approx(one.cost.value * factor)
    assert cheap.chosen is not None
    assert dear.chosen is not None
    assert cheap.chosen.case == dear.chosen.case


def test_counts_that_were_asked_for_and_are_not_known_are_said() -> None:
    advice = advice_on(scaling_run(), counts=(4, 64))
    assert "nothing is known of 64 GPUs" in advice.answer[-1]
    assert any("--rehearse 64" in command for command in advice.measure_next)


def weakest_efficiency(options: Sequence[Option]) -> float:
    return min(each.efficiency.value for each in options if each.efficiency is not None)


def test_efficiencies_are_those_measured() -> None:
    advice = advice_on(scaling_run())
    assert weakest_efficiency(advice.options) == pytest.approx(min(EFFICIENCIES.values()), rel=1e-3)
    assert replace(advice, options=()).chosen is None
