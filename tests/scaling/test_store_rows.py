"""Rows from measurements: which cluster and job a measurement belongs to, and the command that fits them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from typer.testing import CliRunner

from gpualloc.cli.app import app
from gpualloc.records import Measurement
from gpualloc.scaling.store_rows import rows_of_measurements
from gpualloc.store import ResultsStore
from tests.store.sample_measurements import image_case, measured

FAST = {"gpus_per_node": 8, "link": "nvlink4", "network": "ib_ndr"}
SLOW = {"gpus_per_node": 8, "link": "pcie4", "network": None}


def made(*, step_time_s: float = 0.1, **changes: object) -> Measurement:
    if changes.get("world_size") == 1:
        changes = {"strategy": "single", "hook": "none", **changes}
    return measured(image_case(**changes), step_time_s)


def test_each_rehearsed_cluster_is_one_of_its_own_apart_from_real_ranks() -> None:
    worlds = [made(world_size=count, **links) for links in ({}, FAST, SLOW) for count in (1, 2, 16) if links or count < 16]
    rows, num_left_out = rows_of_measurements(worlds)
    assert num_left_out == 0
    by_cluster = {cluster: [row for row in rows if row.cluster == cluster] for cluster in dict.fromkeys(row.cluster for row in rows)}
    assert len(by_cluster) == 3
    assert all("nodes of 8 over" in cluster for cluster in list(by_cluster)[1:])
    real, fast, _ = by_cluster.values()
    assert [(row.num_gpus, row.source) for row in real] == [(1, "measured"), (2, "measured")]
    assert [(row.num_gpus, row.num_nodes, row.placement, row.source) for row in fast] == [
        (1, 1, "1", "measured"),
        (2, 1, "2", "rehearsed"),
        (16, 2, "8+8", "rehearsed"),
    ]


def test_one_gpu_is_the_baseline_of_every_hook_and_halved_gradients_are_half_the_bytes() -> None:
    rows, _ = rows_of_measurements([made(world_size=1), made(hook="none"), made(hook="torch_fp16")])
    found = {(row.model, row.num_gpus): row.gradient_bytes for row in rows}
    assert set(found) == {(f"mobilenet_v2 ddp/{hook}", count) for hook in ("none", "torch_fp16") for count in (1, 2)}
    assert found["mobilenet_v2 ddp/none", 1] == found["mobilenet_v2 ddp/none", 2] == 4 * 3_504_872
    assert found["mobilenet_v2 ddp/torch_fp16", 1] == 2 * 3_504_872


def test_the_rate_of_readers_is_the_nodes_in_batches_of_a_step_and_unknown_on_a_rehearsed_node() -> None:
    real, rehearsed = (dataclasses.replace(made(grad_accum_steps=2, **links), input_samples_per_s=600.0) for links in ({}, FAST))
    assert [row.input_samples_per_s for row in rows_of_measurements([real, rehearsed, made()])[0]] == [300.0, None, None]


def test_several_ranks_on_a_card_are_left_out() -> None:
    rows, num_left_out = rows_of_measurements([made(world_size=1), made(ranks_per_gpu=2)])
    assert (len(rows), num_left_out) == (1, 1)


def test_the_command_fits_a_store_and_forecasts_from_it(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with ResultsStore(path) as store:
        environment = made().environment
        assert environment is not None
        run_id = store.begin_run(command="bench", options={}, environment=environment)
        for count in (1, 2, 4):
            for batch in (16, 32, 64):
                for links, factor in (({}, 1.0), (FAST, 2.0)):
                    store.add(
                        run_id, made(world_size=count, per_device_batch_size=batch, step_time_s=factor * (0.02 + 0.001 * batch), **links)
                    )
    model = tmp_path / "model.json"
    fitted = CliRunner().invoke(app, ["forecast", "fit", "--store-path", str(path), "--out", str(model), "--json"])
    assert fitted.exit_code == 0, fitted.output
    jobs = json.loads(fitted.stdout)["jobs"]
    assert len({job["cluster"] for job in jobs}) == 2
    assert {job["num_rows"] for job in jobs} == {9}
    header = "cluster,model,num_nodes,num_gpus,per_device_batch_size,image_size_px,precision"
    lines = [f'"{job["cluster"]}","{job["model"]}",1,4,64,200,fp16' for job in jobs]
    (tmp_path / "queries.csv").write_text("\n".join([header, *lines]) + "\n")
    done = CliRunner().invoke(app, ["forecast", "predict", "--model", str(model), "--csv", str(tmp_path / "queries.csv"), "--json"])
    real, rehearsed = (row["step_time_s"] for row in json.loads(done.stdout))
    assert abs(real / 0.084 - 1) < 0.05
    assert abs(rehearsed / 0.168 - 1) < 0.05
