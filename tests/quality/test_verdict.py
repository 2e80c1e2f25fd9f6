"""Verdicts of made trainings whose answers are known."""

import pytest

from gpualloc.quality.verdict import GroupVerdict, judge
from gpualloc.quality.words import sentence
from tests.quality.experiments import made_group, made_run

REFERENCE = (0.970, 0.972, 0.971)
TEXT_REFERENCE = (1.900, 1.904, 1.896)


def verdict_of(values: tuple[float, ...], reference: tuple[float, ...] = REFERENCE, *, is_image: bool = True) -> GroupVerdict:
    runs = made_group(reference, is_image=is_image) + made_group(values, precision="fp16", is_image=is_image, step_time_s=0.01)
    return judge(runs)[1]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.971, 0.970, 0.973), "unchanged within noise"),
        ((0.966, 0.967, 0.968), "unchanged within the margin"),
        ((0.940, 0.941, 0.943), "worse"),
        ((0.990, 0.991, 0.992), "better"),
        ((0.950, 0.990, 0.960), "not told apart"),
        ((0.971,), "not told apart"),
    ],
)
def test_accuracy(values: tuple[float, ...], verdict: str) -> None:
    assert verdict_of(values).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((1.901, 1.899, 1.902), "unchanged within noise"), ((1.99, 1.992, 1.991), "worse"), ((1.80, 1.801, 1.802), "better")],
)
def test_loss_is_better_when_it_is_lower(values: tuple[float, ...], verdict: str) -> None:
    found = verdict_of(values, TEXT_REFERENCE, is_image=False)
    assert (found.metric, found.verdict) == ("loss", verdict)
    assert found.margin == pytest.approx(0.019)


def test_a_wide_interval_is_not_called_unchanged() -> None:
    found = verdict_of((0.950, 0.990, 0.960))
    assert "no difference in accuracy seen, and 3 seeds are too few to call it unchanged" in sentence(found)


def test_sentences() -> None:
    runs = [
        *made_group(REFERENCE),
        *made_group(REFERENCE, precision="fp16", step_time_s=0.0105),
        *made_group((0.90, 0.901, 0.902), hook="gpualloc_int8"),
    ]
    reference, fp16, int8 = map(sentence, judge(runs))
    assert reference == "fp32: reference, accuracy 97.1%"
    assert fp16 == "fp16: 1.90x faster, accuracy unchanged within noise (97.1%, +0.0 points [+0.0, +0.0], margin 1 point)"
    assert int8 == ("fp32, gpualloc_int8: no difference in speed seen, accuracy worse (90.1%, -7.0 points [-7.2, -6.8], margin 1 point)")
    assert sentence(verdict_of((1.99, 1.992, 1.991), TEXT_REFERENCE, is_image=False)) == (
        "fp16: 2.00x faster, loss worse (1.991, +0.091 [+0.082, +0.100], margin 0.019)"
    )


def test_divergence_is_reported_not_averaged_away() -> None:
    lost = made_run(0.1, seed=2, precision="fp16", status="diverged", reason="inf or NaN in the loss by step 50 of 100")
    runs = [*made_group(REFERENCE), *made_group((0.971, 0.970), precision="fp16"), lost]
    found = judge(runs)[1]
    assert (found.verdict, found.num_seeds, found.values) == ("diverged in 1 of 3 seeds", 3, (0.971, 0.970))
    assert found.problems == ("seed 2 diverged: inf or NaN in the loss by step 50 of 100",)
    assert sentence(found) == "fp16: diverged in 1 of 3 seeds, accuracy of the others 97.0%"
    all_lost = judge([*made_group(REFERENCE), lost])[1]
    assert sentence(all_lost) == "fp16: diverged in 1 of 1 seeds"
    assert (all_lost.mean, all_lost.speedup, all_lost.steps_to_target) == (None, None, ())


def test_without_a_reference_nothing_is_compared() -> None:
    (found,) = judge(made_group((0.97, 0.98), precision="fp16"))
    assert (found.verdict, found.gain) == ("no reference", None)


def test_steps_to_the_target() -> None:
    (found,) = judge(made_group((0.97, 0.80)), target=0.9)
    assert found.steps_to_target == (100,)
    (of_text,) = judge(made_group((1.9, 2.5), is_image=False), target=3.1)
    assert of_text.steps_to_target == (50, 50)


def test_curves_are_compared_point_by_point() -> None:
    assert verdict_of((0.971, 0.970, 0.973)).curve_within_noise == (3, 3)
    assert verdict_of((0.5, 0.501, 0.502)).curve_within_noise == (2, 3)
