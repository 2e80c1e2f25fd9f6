"""Files that the first gpualloc wrote of each kind: today's reads them, and refuses those of a later one by their version.

`data/first_version` was written by the commits in which each kind of file first appeared, and is never made again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import gpualloc.train
from gpualloc.errors import GpuallocError
from gpualloc.launch.jobs import JobStore
from gpualloc.launch.leases import LeaseStore
from gpualloc.plan.records import read_plan, write_plan
from gpualloc.quality.records import read_experiment
from gpualloc.report.loading import read_profile
from gpualloc.scaling import StepQuery
from gpualloc.scaling.model_file import read_model
from gpualloc.store import ResultsStore
from gpualloc.train import checkpoint
from gpualloc.watching.store import WatchStore
from tests.store.sample_measurements import gpu_run, measured

FIRST = Path(__file__).with_name("data") / "first_version"


@pytest.fixture
def first(tmp_path: Path) -> Callable[[str], Path]:
    """A copy that may be written to."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(FIRST / name, tmp_path / name))

    return copy


def test_results(first: Callable[[str], Path]) -> None:
    with ResultsStore(first("results.sqlite")) as store:
        (run,) = store.runs()
        rows, problems = store.measurements(run.run_id)
        assert (run.status, run.options, problems) == ("complete", {"gpus": [1, 2]}, [])
        assert run.environment is not None
        assert [(row.case.label(), row.step_time_s, row.status) for row in rows] == [
            (row.case.label(), row.step_time_s, row.status) for row in gpu_run()
        ]
        assert [row.case.key() for row in rows] == [row.case.key() for row in gpu_run()]  # else --resume would measure all again
        store.add(run.run_id, measured(rows[0].case, 0.5))
        assert len(store.measurements(run.run_id)[0]) == len(rows)


def test_state(first: Callable[[str], Path]) -> None:
    path = first("state.sqlite")
    with JobStore(path) as jobs, LeaseStore(path) as leases:
        assert [(job.name, job.engine, job.status, job.reason) for job in jobs.jobs()][::-1] == [
            ("vision", "local", "complete", None),
            ("text", "slurm", "stopped", "asked to"),
        ]
        assert [held.devices for held in leases.clear_stale()] == [("cpu:0", "cpu:1")]  # of another boot
        leases.acquire(["cpu:0"], holder="me")


def test_watch(first: Callable[[str], Path]) -> None:
    with WatchStore(first("watch.sqlite")) as store:
        samples = list(store.samples())
        assert [(sample.device_name, sample.utilisation_percent) for sample in samples] == [("NVIDIA H100", 80.0), ("NVIDIA H100", 60.0)]
        assert samples[0].processes is not None
        assert samples[0].processes[0].user == "ann"
        assert store.num_damaged == 0


def test_plan(first: Callable[[str], Path], tmp_path: Path) -> None:
    plan = read_plan(first("plan.json"))
    assert [(each.workload, each.num_gpus, each.samples_done) for each in plan.assignments] == [("vision", 2, 0.0)]
    assert (plan.waiting[0].workload, plan.measuring[0].command) == ("late", ("gpualloc", "bench"))
    write_plan(plan, tmp_path / "again.json")
    assert read_plan(tmp_path / "again.json") == plan


def test_scaling_model(first: Callable[[str], Path]) -> None:
    query = StepQuery(cluster="box", model="job1", num_nodes=1, num_gpus=1, placement=None, per_device_batch_size=8)
    (forecast,) = read_model(first("model.json")).predict([query])
    assert forecast.step_time_s == pytest.approx(0.0717, rel=0.01)  # nearly as the gpualloc that wrote it said: its rows are fitted again


def test_quality(first: Callable[[str], Path]) -> None:
    assert len(read_experiment(first("quality.json")).runs) == 1


def test_profile(first: Callable[[str], Path]) -> None:
    assert read_profile(first("profile.json"))[0].subject == "train.py"


def test_checkpoint(first: Callable[[str], Path]) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs = torch.ones(32, 4)
    training = gpualloc.train.prepare(
        model,
        optimizer,
        TensorDataset(inputs, inputs[:, :1]),
        num_steps=5,
        per_device_batch_size=4,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
        checkpoint=first("checkpoint.pt"),
    )
    assert (training.steps_done, training.first_step) == (3, 3)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.0244, 0.2963, -0.3833, -0.3397]]), atol=1e-4, rtol=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.006913417)
    for batch, targets in training.batches():
        training.step(torch.nn.functional.mse_loss(training.model(batch), targets))
    assert training.steps_done == 5


def open_checkpoint(path: Path) -> None:
    model = torch.nn.Linear(4, 1)
    checkpoint.load(path, model, torch.optim.AdamW(model.parameters()))


READERS: dict[str, Callable[[Path], Any]] = {
    "results.sqlite": ResultsStore,
    "state.sqlite": LeaseStore,
    "watch.sqlite": WatchStore,
    "plan.json": read_plan,
    "model.json": read_model,
    "quality.json": read_experiment,
    "profile.json": read_profile,
    "checkpoint.pt": open_checkpoint,
}


def make_newer(path: Path) -> None:
    """As a gpualloc with schema 99 would have marked it."""
    if path.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
    elif path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    else:
        torch.save({**torch.load(path, weights_only=True), "version": 99}, path)


@pytest.mark.parametrize("name", READERS)
def test_files_of_a_newer_gpualloc_are_refused_with_their_version(name: str, first: Callable[[str], Path]) -> None:
    path = first(name)
    make_newer(path)
    before = path.read_bytes()
    with pytest.raises(GpuallocError, match=r"99.*upgrade gpualloc"):
        READERS[name](path)
    assert path.read_bytes() == before


def test_every_kind_of_file_is_there() -> None:
    assert {path.name for path in FIRST.iterdir()} == set(READERS)
