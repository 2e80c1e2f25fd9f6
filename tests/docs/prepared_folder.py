"""A folder in which the documentation's commands run: small stand-ins for a reader's files, runs in the store, and settings that keep
measurements short."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gpualloc.launch.jobs import JobStore
from gpualloc.profiling.records import profile_to_json
from gpualloc.records import Measurement
from gpualloc.store import ResultsStore
from tests.docs.shell_blocks import ROOT
from tests.findings.studied_runs import details_run, study_run
from tests.launch import plans
from tests.report.inputs import made_profile
from tests.store.sample_measurements import GPU_ENVIRONMENT, gpu_run

H100 = replace(GPU_ENVIRONMENT, device_name="NVIDIA H100 80GB HBM3")  # a GPU that the price page names
SETTINGS = """
[bench]
batch-size = 1
warmup-steps = 2
steps = 1
repeats = 2
rounds = 1
max-minutes = 3

["bench --quality"]
steps = 4
seeds = 2

[study]
batch-size = 1
warmup-steps = 2
steps = 1
repeats = 2

[profile]
batch-size = 1
steps = 3
warmup-steps = 2

[rehearse]
steps = 3
warmup-steps = 2

[calibrate]
max-bytes = "64KiB"

[simulate]
jobs = 10
"""
TRAIN = """
import argparse, os, time
import torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--pause-s", type=float, default=0.0)
arguments = parser.parse_args()
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
if "RANK" in os.environ:
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)
for step in range(400):
    inputs, targets = torch.rand(arguments.batch_size, 64), torch.randint(10, (arguments.batch_size,))
    loss = torch.nn.functional.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(arguments.pause_s)
"""
WORKLOADS = """
workloads:
  - name: vision
    kind: image
    model: mobilenet_v2
    image_size_px: 224
    dataset_size: 100_000
    epochs: 1
    batch: {global_batch_size: 256}
    precisions: [fp16]
    command: [python, train.py]
    rates:
      - {gpu_type: A100, num_gpus: 1, samples_per_s: 2400}
      - {gpu_type: cpu, num_gpus: 1, samples_per_s: 100, memory_gib: 1}
"""
CLUSTER_TO_PLAN = """
name: two
nodes:
  - {name: big, gpu_type: A100, num_gpus: 4, memory_gib: 80}
currency: USD
prices:
  - {gpu_type: A100, per_gpu_hour: 3.00, source: made up}
"""
CLUSTER_TO_SIMULATE = """
nodes:
  - {gpu_type: a100, nodes: 2, gpus_per_node: 8, price_per_gpu_hour: 2.5}
  - {gpu_type: t4, nodes: 6, gpus_per_node: 4}
"""
JOBS = "job_id,submit_time_s,job_type\n" + "".join(f"j{number},{60 * number},cifar10\n" for number in range(6))
ROW_COLUMNS = "cluster,model,num_nodes,num_gpus,per_device_batch_size,step_time_s\n"
ROWS = ROW_COLUMNS + "".join(
    f"t4,{model},1,{gpus},{batch},{0.01 * batch * weight * (1 + 0.1 * (gpus > 1)):.4f}\n"
    for model, weight in (("bert", 2), ("resnet", 1))
    for gpus in (1, 2, 4)
    for batch in (8, 16, 32)
)
QUERIES = "cluster,model,num_nodes,num_gpus,per_device_batch_size\nt4,bert,1,4,24\nt4,resnet,2,8,16\n"


def prepare(folder: Path) -> dict[str, str]:
    """The environment of commands in it; all that gpualloc keeps goes there."""
    files = {
        "gpualloc.toml": SETTINGS,
        "train.py": TRAIN,
        "package/train.py": TRAIN,
        "package/__init__.py": "",
        "workloads.yaml": WORKLOADS,
        "jobs.csv": JOBS,
        "rows.csv": ROWS,
        "here.csv": ROWS,
        "there.csv": ROWS.replace("t4,", "a100,"),
        "queries.csv": QUERIES,
        "prices.yaml": _block_of("docs/prices.md", "yaml"),  # as its reader would keep it
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(ROOT / "examples", folder / "examples")
    for link in ("ours-node", "ours-network"):  # as if `gpualloc calibrate` had measured them
        text = (ROOT / "gpualloc/rehearsal/links" / ("nvlink4.yaml" if link.endswith("node") else "ib_ndr.yaml")).read_text()
        (folder / "links").mkdir(exist_ok=True)
        (folder / "links" / f"{link}.yaml").write_text(
            text.replace("name: nvlink4", f"name: {link}").replace("name: ib_ndr", f"name: {link}")
        )
    shutil.copy(ROOT / "benchmarks/results/quality_digits_cpu_2026-11-26.json", folder / "quality.json")
    for name in ("run.json", "exported.json"):  # of `gpualloc results export --format json`
        shutil.copy(ROOT / "benchmarks/results/slices_mobilenet_v2_h100_2026-11-26.json", folder / name)
    (folder / "profile.json").write_text(json.dumps(profile_to_json(made_profile())))
    _paint_photos(folder / "photos")
    _keep_runs(folder / "results.sqlite")
    shutil.copy(folder / "results.sqlite", folder / "team.sqlite")
    _keep_jobs(folder)
    put_files_for("gpualloc run", folder)
    return _environment(folder)


def put_files_for(command: str, folder: Path) -> None:
    """A cluster to simulate and one to plan for are files of other forms; cores are planned for this machine alone."""
    (folder / "cluster.yaml").write_text(CLUSTER_TO_SIMULATE if "simulate" in command else CLUSTER_TO_PLAN)
    if "gpualloc run" in command or "--current" in command:
        script = (sys.executable, str(folder / "train.py"), "--pause-s", "0.05")  # twenty seconds
        kind = {"gpu_type": "A100"} if "kubernetes" in command else {}
        both = (plans.assignment("vision", command=script, cores=(0, 1), **kind), plans.assignment("text", command=script, **kind))
        plans.write(folder, *both)


def _paint_photos(folder: Path) -> None:
    """Eight of two classes."""
    image = pytest.importorskip("PIL.Image")
    for number in range(8):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (40, 40), (30 * number, 90, 90)).save(path)


def _keep_runs(path: Path) -> None:
    """Four runs; 3 and 4 are of the same cases."""
    with ResultsStore(path) as store:
        for rows in (details_run(), study_run(), [*gpu_run(), *study_run()], [*gpu_run(), *study_run(spread=0.02)]):
            run = store.begin_run(command="gpualloc bench", options={}, environment=H100)
            for row in rows:
                store.add(run, _on_h100(row))
            store.finish_run(run, "complete")


def _keep_jobs(folder: Path) -> None:
    """Twelve jobs that are over; the last is called vision and ran on four ranks."""
    with JobStore(folder / "state.sqlite") as store:
        for number in range(1, 13):
            name = "vision" if number == 12 else f"job{number}"
            logs = folder / "jobs" / f"{number}-{name}" / "attempt1"
            logs.mkdir(parents=True)
            for log in ("agent", *(f"rank{rank}" for rank in range(4))):
                (logs / f"{log}.log").write_text(f"{log} of {name}\n")
            job = store.add(name=name, engine="local", folder=logs.parent, assignment={})
            store.start(job, reference="0", attempt=1)
            store.finish(job, "complete")


def _on_h100(row: Measurement) -> Measurement:
    return replace(row, environment=H100)


def _environment(folder: Path) -> dict[str, str]:
    """Programs by the names that the documentation calls them."""
    (folder / "bin").mkdir()
    calls = {"gpualloc": "-m gpualloc", "python": "", "pytest": "-m pytest", "torchrun": "-m torch.distributed.run"}
    for name, call in calls.items():
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n')
        program.chmod(0o755)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    own = {name: value for name, value in os.environ.items() if not name.startswith("GPUALLOC_")}
    return {
        **own,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "GPUALLOC_STORE": str(folder / "results.sqlite"),
        "GPUALLOC_STATE": str(folder / "state.sqlite"),
        "GPUALLOC_WATCH_STORE": str(folder / "watch.sqlite"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def _block_of(page: str, language: str) -> str:
    return (ROOT / page).read_text().split(f"```{language}\n")[1].split("```")[0]
