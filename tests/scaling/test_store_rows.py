"""Rows of the results store as rows of the scaling model."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.scaling import ScalingModel, StepQuery, StepRow
from gpualloc.scaling.store_rows import rows_of_measurements
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import GPU_ENVIRONMENT, image_case, measured

SINGLE = {"strategy": "single", "hook": "none", "world_size": 1}
NVLINK = {"gpus_per_node": 8, "link": "nvlink4", "network": None}
PCIE = {"gpus_per_node": 8, "link": "pcie4", "network": None}
MEASUREMENTS = [
    measured(image_case(**SINGLE, per_device_batch_size=32), 0.020),
    measured(image_case(**SINGLE, per_device_batch_size=64), 0.040),
    measured(image_case(world_size=2), 0.044, exposed_comm_s=0.004),
    measured(image_case(world_size=4, **NVLINK), 0.041, exposed_comm_s=0.001),
    measured(image_case(world_size=4, **PCIE), 0.060, exposed_comm_s=0.020),
    measured(image_case(world_size=4, ranks_per_gpu=4), 0.090),
    measured(image_case(world_size=4), 0.050, disturbances=("another process",)),
]


def test_rehearsed_links_and_real_ones_are_clusters_of_their_own_with_the_same_baseline() -> None:
    rows, num_left_out = rows_of_measurements(MEASUREMENTS)
    assert num_left_out == 2
    clusters = {
        name: sorted((row.num_gpus, row.step_time_s, row.source) for row in rows if row.cluster == name) for name in by_cluster(rows)
    }
    alone = [(1, 0.020, "measured"), (1, 0.040, "measured")]
    assert clusters == {
        "NVIDIA H200": [*alone, (2, 0.044, "measured")],
        "NVIDIA H200 in nodes of 8 over nvlink4": [*alone, (4, 0.041, "rehearsed")],
        "NVIDIA H200 in nodes of 8 over pcie4": [*alone, (4, 0.060, "rehearsed")],
    }
    assert {row.model for row in rows} == {"mobilenet_v2 ddp/none"}


def by_cluster(rows: list[StepRow]) -> set[str]:
    return {row.cluster for row in rows}


def test_forecasts_of_two_rehearsed_links_differ_as_the_links_do() -> None:
    model = ScalingModel.fit(rows_of_measurements(MEASUREMENTS)[0])

    def forecast(link: str) -> float:
        where = {"cluster": f"NVIDIA H200 in nodes of 8 over {link}", "model": "mobilenet_v2 ddp/none", "num_nodes": 1, "num_gpus": 4}
        (found,) = model.predict(
            [StepQuery(**where, placement="4", per_device_batch_size=64, image_size_px=200, precision="fp16")]  # type: ignore[arg-type]
        )
        assert found.step_time_s is not None, found.reason
        return found.step_time_s

    assert forecast("nvlink4") < 0.047 < 0.053 < forecast("pcie4")


def test_a_model_is_fitted_from_the_store(tmp_path: Path) -> None:
    store_path, model_path = tmp_path / "results.sqlite", tmp_path / "model.json"
    with ResultsStore(store_path) as store:
        run_id = store.begin_run(command="gpualloc bench", options={}, environment=GPU_ENVIRONMENT)
        for row in MEASUREMENTS:
            store.add(run_id, row)
    arguments = ["forecast", "fit", "--store-path", str(store_path), "--out", str(model_path), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    assert "2 " in done.stderr  # left out, and said
    assert ScalingModel.load(model_path)
