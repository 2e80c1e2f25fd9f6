"""Made clusters whose truth is known: forecasts, refusals, files and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.errors import UsageError
from gpualloc.scaling import ScalingModel, StepQuery, StepRow
from gpualloc.scaling.csv_rows import read_rows

PLACES = ((1, 1, "1"), (1, 2, "2"), (1, 4, "4"), (2, 2, "11"), (2, 4, "22"), (2, 8, "44"), (4, 8, "2222"), (4, 16, "4444"))
HEADER = "cluster,model,num_nodes,num_gpus,placement,per_device_batch_size,step_time_s,sync_time_s"


def truth(job: int, nodes: int, gpus: int, batch: int) -> tuple[float, float]:
    """(step time, exposed synchronisation): compute and link add up."""
    compute = 0.02 * (job + 1) + 0.002 * (job + 1) * batch
    link = 0.0 if gpus == 1 else 0.01 * (job + 1) * (1 + 0.2 * np.log2(gpus)) * (4 if nodes > 1 else 1)
    return compute + link, link


def rows_of(job: int) -> list[StepRow]:
    return [
        StepRow(
            cluster="made", model=f"job{job}", num_nodes=k, num_gpus=n, placement=p, per_device_batch_size=b, step_time_s=t, sync_time_s=s
        )
        for k, n, p in PLACES
        for b in (8, 16, 32, 64)
        for t, s in [truth(job, k, n, b)]
    ]


@pytest.fixture(scope="module")
def model() -> ScalingModel:
    """job3 was measured on up to two GPUs of a node, the others everywhere."""
    return ScalingModel.fit([*(row for job in range(3) for row in rows_of(job)), *(row for row in rows_of(3) if row.num_gpus <= 2)])


def test_held_out_gpu_counts_are_forecast_from_the_other_jobs(model: ScalingModel) -> None:
    held_out = [row for row in rows_of(3) if row.num_gpus > 2]
    forecasts = model.predict(held_out)
    errors = [abs((forecast.step_time_s or 0) / row.step_time_s - 1) for forecast, row in zip(forecasts, held_out, strict=True)]
    assert np.median(errors) < 0.1
    assert all((f.low_s or 9) < row.step_time_s < (f.high_s or 0) for f, row in zip(forecasts, held_out, strict=True))
    assert {forecast.kind for forecast in forecasts} == {"extrapolates"}


@pytest.mark.parametrize(("job", "gpus", "batch"), [("job9", 1, 8), ("job3", 1024, 8), ("job3", 2, 4096)])
def test_too_little_evidence_is_refused_with_what_to_measure(model: ScalingModel, job: str, gpus: int, batch: int) -> None:
    query = StepQuery(cluster="made", model=job, num_nodes=1, num_gpus=gpus, placement=None, per_device_batch_size=batch)
    (forecast,) = model.predict([query])
    assert forecast.kind == "refused"
    assert forecast.step_time_s is None
    assert "measure" in (forecast.reason or "")
    assert model.suggest_next([query])[0].query != query or gpus == 1


def test_a_negative_slope_is_refused() -> None:
    from dataclasses import replace

    rows = [replace(row, step_time_s=1 / row.per_device_batch_size, sync_time_s=None) for row in rows_of(0) if row.num_gpus == 1]
    assert ScalingModel.fit(rows).predict(rows[:1])[0].kind == "refused"


def test_a_saved_model_forecasts_the_same(model: ScalingModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model.json")
    again = ScalingModel.load(tmp_path / "model.json").predict(rows_of(3))
    assert [f.step_time_s for f in again] == pytest.approx([f.step_time_s for f in model.predict(rows_of(3))], rel=1e-5)
    data = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(UsageError, match="99"):
        ScalingModel.load(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("cell", "column"), [("c,m,1,1,1,8,-1,", "step_time_s"), ("c,m,1,x,1,8,1,", "num_gpus"), ("c,m,2,1,,8,1,", "num_gpus")]
)
def test_a_bad_cell_is_named_by_line_and_column(tmp_path: Path, cell: str, column: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{HEADER}\nc,m,1,1,,8,1,\n{cell}\n")
    with pytest.raises(UsageError, match=f"line 3, column {column}"):
        read_rows(tmp_path / "rows.csv")


def test_the_command_fits_and_answers_each_query_in_order(tmp_path: Path) -> None:
    rows = [*rows_of(0), *(row for row in rows_of(1) if row.num_gpus <= 2)]
    names = HEADER.split(",")
    (tmp_path / "rows.csv").write_text("\n".join([HEADER, *(",".join(str(getattr(row, name)) for name in names) for row in rows)]))
    (tmp_path / "queries.csv").write_text(
        "\n".join([",".join(names[:6]), "made,job1,2,4,22,16", "made,none,1,1,1,8", "made,job1,1,1,1,16"])
    )
    fitted = CliRunner().invoke(app, ["forecast", "fit", "--csv", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "m.json")])
    assert fitted.exit_code == 0, fitted.output
    done = CliRunner().invoke(
        app, ["forecast", "predict", "--model", str(tmp_path / "m.json"), "--csv", str(tmp_path / "queries.csv"), "--json"]
    )
    assert [row["kind"] for row in json.loads(done.stdout)] == ["extrapolates", "refused", "interpolates"]


def single(cluster: str) -> StepQuery:
    return StepQuery(cluster=cluster, model="job0", num_nodes=1, num_gpus=1, placement=None, per_device_batch_size=32)


def test_a_cluster_like_another_is_as_many_times_as_fast_with_a_wider_interval(model: ScalingModel) -> None:
    both = model.like("fast", known="made", compute_ratio=2.0, link_ratio=1.0)
    made, fast = both.predict([single("made"), single("fast")])
    assert fast.step_time_s == pytest.approx((made.step_time_s or 0) / 2, rel=0.02)
    assert (fast.high_s or 0) / (fast.low_s or 1) > 2 > (made.high_s or 9) / (made.low_s or 1)
    for known, ratio in (("made", 0.0), ("none", 1.0)):
        with pytest.raises(UsageError):
            model.like("fast", known=known, compute_ratio=ratio)


def test_gpus_of_published_memory_bandwidth_are_between_as_fast_and_that_much_faster() -> None:
    from dataclasses import replace

    t4, a100 = "Tesla T4", "NVIDIA A100-SXM4-40GB nvlink3"
    fitted = ScalingModel.fit([replace(row, cluster=t4) for row in (*rows_of(0), *rows_of(1))])
    slow, fast = fitted.like(a100, known=t4).predict([single(t4), single(a100)])
    assert slow.step_time_s is not None
    assert slow.step_time_s / (1555 / 320) < (fast.step_time_s or 0) < slow.step_time_s
    assert (fast.low_s or 9) < slow.step_time_s / (1555 / 320)
    assert slow.step_time_s < (fast.high_s or 0)
    with pytest.raises(UsageError, match="no memory bandwidth is published here for 'NVIDIA X1'"):
        fitted.like("NVIDIA X1", known=t4)


def test_the_command_takes_a_cluster_like_another(model: ScalingModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m.json")
    (tmp_path / "q.csv").write_text(f"{HEADER.rsplit(',', 2)[0]}\nfast,job0,1,1,1,32\n")
    asked = ["forecast", "predict", "--model", str(tmp_path / "m.json"), "--csv", str(tmp_path / "q.csv"), "--json"]
    (fast,) = json.loads(CliRunner().invoke(app, [*asked, "--like", "fast=made:2:1"]).stdout)
    (alone,) = model.predict([single("made")])
    assert fast["step_time_s"] == pytest.approx((alone.step_time_s or 0) / 2, rel=0.02)
    assert "NEW=KNOWN" in CliRunner().invoke(app, [*asked, "--like", "fast=other:2"]).output
    assert "published here" in CliRunner().invoke(app, [*asked, "--like", "fast=made"]).output
