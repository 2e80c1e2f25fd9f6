"""Optional columns on a made cluster: image size, precision, sequence length and gradient bytes, whose coefficients are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpualloc.scaling import ScalingModel, StepQuery, StepRow
from gpualloc.scaling.published_parameters import published_gradient_bytes

PLACES = ((1, 1, "1"), (1, 2, "2"), (1, 4, "4"), (2, 4, "22"), (2, 8, "44"))
MEGABYTES = {"small": 20.0, "middle": 60.0, "large": 200.0}
FLOOR_S = 0.1
SIZE_SLOPE = 0.6  # of log arithmetic per doubling of pixels or tokens
FP16_SHIFT = -0.5
BYTES_SLOPE = 1.0  # of log link per log gradient bytes
GAMMA = float(np.exp(1.0))


def arithmetic_s(batch: int, size: float, precision: str) -> float:
    return float(0.1 * (batch / 8) * size ** (SIZE_SLOPE / np.log(2)) * np.exp(FP16_SHIFT * (precision == "fp16")))


def step(job: str, num_nodes: int, num_gpus: int, batch: int, size: float, precision: str) -> float:
    """The equation with an overlap in the middle of its prior."""
    compute = FLOOR_S + arithmetic_s(batch, size, precision)
    if num_gpus == 1:
        return float(compute)
    link = 0.01 * MEGABYTES[job] ** BYTES_SLOPE * (1 + 0.3 * np.log2(num_gpus)) * (2 if num_nodes > 1 else 1)
    return float((compute**GAMMA + link**GAMMA) ** (1 / GAMMA))


def made_rows(job: str, *, has_bytes: bool = True, is_text: bool = False) -> list[StepRow]:
    """A job at two sizes, two precisions, three batches and five placements."""
    sizes = [(None, 128, 1.0), (None, 256, 2.0)] if is_text else [(100, None, 1.0), (200, None, 4.0)]
    return [
        StepRow(
            cluster="made",
            model=job,
            num_nodes=num_nodes,
            num_gpus=num_gpus,
            placement=placement,
            per_device_batch_size=batch,
            image_size_px=pixels,
            sequence_length=tokens,
            precision=precision,
            gradient_bytes=MEGABYTES[job] * 1e6 if has_bytes else None,
            step_time_s=step(job, num_nodes, num_gpus, batch, size, precision),
            sync_time_s=None,
        )
        for num_nodes, num_gpus, placement in PLACES
        for batch in (8, 16, 32)
        for pixels, tokens, size in sizes
        for precision in ("fp16", "fp32")
    ]


def coefficient(model: ScalingModel, name: str) -> float:
    fit = model.clusters["made"].fit
    return float(fit.coefficients[fit.names.index(name)])


@pytest.fixture(scope="module")
def model() -> ScalingModel:
    return ScalingModel.fit([row for job in MEGABYTES for row in made_rows(job, is_text=job == "large")])


def test_known_coefficients_are_recovered(model: ScalingModel) -> None:
    for job in MEGABYTES:
        assert coefficient(model, f"{job} size slope") == pytest.approx(SIZE_SLOPE, abs=0.06)
        assert coefficient(model, f"{job} in fp32") == pytest.approx(-FP16_SHIFT, abs=0.06)
        assert coefficient(model, f"{job} floor") == pytest.approx(np.log(FLOOR_S / arithmetic_s(16, 1.0, "fp16")), abs=0.1)
    assert coefficient(model, "gradient bytes") == pytest.approx(BYTES_SLOPE, abs=0.15)


@pytest.mark.parametrize("field", ["image_size_px", "sequence_length"])
def test_a_size_between_those_measured_is_forecast(model: ScalingModel, field: str) -> None:
    job, size = ("small", 2.0) if field == "image_size_px" else ("large", 1.5)
    query = StepQuery(cluster="made", model=job, num_nodes=1, num_gpus=1, placement="1", per_device_batch_size=16, precision="fp32")
    query = replace(query, **{field: 141 if field == "image_size_px" else 192})  # type: ignore[arg-type]
    (forecast,) = model.predict([query])
    truth = step(job, 1, 1, 16, size, "fp32")
    assert forecast.step_time_s == pytest.approx(truth, rel=0.06)
    assert (forecast.low_s or 9) < truth < (forecast.high_s or 0)
    assert forecast.kind == "interpolates"


def test_a_row_at_another_size_tells_of_it() -> None:
    """Without it the forecast at 200 px rests on the prior of the slope; with one row it is near, and other batches gain."""
    others = [row for job in ("middle", "large") for row in made_rows(job)]
    mine = [row for row in made_rows("small") if row.num_gpus == 1]
    at_100 = [row for row in mine if row.image_size_px == 100]
    one_row = [row for row in mine if (row.image_size_px, row.per_device_batch_size, row.precision) == (200, 8, "fp16")]
    asked = [row for row in mine if row.image_size_px == 200 and row.per_device_batch_size == 32]

    def error(rows: list[StepRow]) -> float:
        forecasts = ScalingModel.fit([*others, *rows]).predict(asked)
        return max(abs((f.step_time_s or 0) / row.step_time_s - 1) for f, row in zip(forecasts, asked, strict=True))

    assert error([*at_100, *one_row]) < 0.1 < 0.3 < error(at_100)


def test_gradient_bytes_tell_how_a_job_scales_that_ran_on_one_gpu_only() -> None:
    """Links so slow that bytes rule: the others' times by the ratio of the bytes; without them its times on one GPU mislead."""

    def error(*, has_bytes: bool) -> float:
        rows = [row for job in ("small", "middle") for row in made_rows(job, has_bytes=has_bytes)]
        mine = made_rows("large", has_bytes=has_bytes)
        held_out = [row for row in mine if row.num_gpus > 1]
        forecasts = ScalingModel.fit([*rows, *(row for row in mine if row.num_gpus == 1)]).predict(held_out)
        return float(np.median([abs((f.step_time_s or 0) / row.step_time_s - 1) for f, row in zip(forecasts, held_out, strict=True)]))

    assert error(has_bytes=True) < 0.1 < error(has_bytes=False)


def test_published_models_are_known_by_name_and_others_are_not() -> None:
    assert published_gradient_bytes("BERT") == 4 * 110e6
    assert published_gradient_bytes("bert of ours") is None
