"""The readers of users' files, each with texts that it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gpualloc.errors import GpuallocError
from tests.quality.experiments import made_run
from tests.store.sample_measurements import GPU_ENVIRONMENT, image_case, measured

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reader:
    """A file is read, and what is derived from it at once is asked for."""

    suffix: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]  # whole files

    def run(self, data: bytes, folder: Path) -> bool:
        """Whether the reader takes the file. Anything but an answer or an error of ours goes through."""
        path = folder / (f"file{self.suffix}" if self.suffix else "progress.json")
        path.write_bytes(data)
        words = None
        try:
            self.read(path)
        except GpuallocError as error:
            words = str(error)
        assert words is None or words.strip(), "an error without words"
        return words is None


def _read_workloads(path: Path) -> object:
    from gpualloc.plan.workloads import read_workloads

    return [(each.total_samples, each.batch.learning_rate_factor(each.batch.bounds[1])) for each in read_workloads(path).workloads]


def _read_cluster(path: Path) -> object:
    from gpualloc.plan.cluster_file import read_cluster

    return read_cluster(path).planned()


def _read_simulated_cluster(path: Path) -> object:
    from gpualloc.plan.simulation.clusters import load_cluster

    return load_cluster(str(path))


def _read_study(path: Path) -> object:
    from gpualloc.bench.study import load_study

    return load_study(path)


def _read_plan(path: Path) -> object:
    from gpualloc.plan.records import plan_to_json, read_plan

    return json.dumps(plan_to_json(read_plan(path)))


def _read_prices(path: Path) -> object:
    from gpualloc.money import price_book

    price_book._read.cache_clear()
    return price_book.load_price_book(path).rent_of("NVIDIA H100 80GB HBM3")


def _read_link(path: Path) -> object:
    from gpualloc.rehearsal import link_model

    link_model._read.cache_clear()
    return link_model.load_link(str(path)).efficiency_at(1e6)


def _read_rows(path: Path) -> object:
    from gpualloc.scaling.csv_rows import read_rows

    return read_rows(path)


def _read_queries(path: Path) -> object:
    from gpualloc.scaling.csv_rows import read_queries

    return read_queries(path)


def _read_model(path: Path) -> object:
    from gpualloc.scaling.model_file import read_model

    return read_model(path)


def _read_trace(path: Path) -> object:
    from gpualloc.plan.simulation.job_types import assumed_job_types
    from gpualloc.plan.simulation.trace import read_trace

    return read_trace(path, assumed_job_types())


def _read_measured_steps(path: Path) -> object:
    import numpy as np

    from gpualloc.plan.simulation.throughput import read_measured

    return [steps.at((2, 16), np.array([8.0, 64.0])) for steps in read_measured(path).values()]


def _read_profile(path: Path) -> object:
    from gpualloc.report.loading import read_profile

    return read_profile(path)


def _read_profiler_trace(path: Path) -> object:
    from gpualloc.profiling.trace import read_trace

    return read_trace(path)


def _read_experiment(path: Path) -> object:
    from gpualloc.quality.records import read_experiment

    return read_experiment(path)


def _read_exported_run(path: Path) -> object:
    from gpualloc.report.loading import load_studies

    return load_studies([str(path)], path.with_suffix(".sqlite"), min_efficiency=0.8)


def _read_progress(path: Path) -> object:
    from gpualloc.launch.progress import read_progress

    found = read_progress(path.parent)
    return found and found.samples_per_s


def _read_script(path: Path) -> object:
    from gpualloc.doctor.script import check_script

    return check_script(path)


def _read_settings(path: Path) -> object:
    from typer.main import get_command

    from gpualloc.cli.app import COMMANDS, app
    from gpualloc.cli.settings_file import read_settings_files

    with _as_only_settings(path):
        settings = read_settings_files()
        settings.check_sections(COMMANDS)
        group = get_command(app)
        context = group.context_class(group)
        return [settings.of_command(COMMANDS.get(name), (name,), context) for name in ("bench", "watch", "plan")]


@contextmanager
def _as_only_settings(path: Path) -> Iterator[None]:
    from gpualloc.cli import settings_file

    before = settings_file.settings_paths
    settings_file.settings_paths = lambda: [str(path)]  # type: ignore[assignment]
    try:
        yield
    finally:
        settings_file.settings_paths = before


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def _files(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [(ROOT / name).read_bytes() for name in names]


def _as_json(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(yaml.safe_load((ROOT / name).read_text()), default=str).encode() for name in names]


def _plan() -> list[bytes]:
    from gpualloc.plan.records import plan_to_json
    from tests.plan.inputs import cluster, plan_of, workload, workloads_file

    return [json.dumps(plan_to_json(plan_of(workloads_file(workload(command=["python", "train.py"])), cluster({})).plan)).encode()]


def _model() -> list[bytes]:
    import tempfile

    from gpualloc.scaling import ScalingModel
    from gpualloc.scaling.model_file import write_model
    from tests.scaling.test_forecast import rows_of

    with tempfile.TemporaryDirectory() as folder:
        write_model(ScalingModel.fit(rows_of(0)[:8]), Path(folder) / "model.json")
        return [(Path(folder) / "model.json").read_bytes()]


def _profile() -> list[bytes]:
    from gpualloc.profiling.records import profile_to_json
    from tests.report.inputs import made_profile

    return [json.dumps(profile_to_json(made_profile())).encode()]


def _profiler_trace() -> list[bytes]:
    from tests.profiling.made_profiles import event

    events = [event("cpu_op", "aten::mm", 0, 5), event("kernel", "gemm", 2, 9, correlation=3), event("gpu_memcpy", "Memcpy HtoD", 1, 2)]
    return [json.dumps({"traceEvents": events}).encode()]


def _experiment() -> list[bytes]:
    from gpualloc.quality.records import Experiment, experiment_to_json

    return [json.dumps(experiment_to_json(Experiment(environment=GPU_ENVIRONMENT, runs=(made_run(0.5, seed=0),)))).encode()]


def _exported_run() -> list[bytes]:
    from gpualloc.records import to_json

    run: dict[str, Any] = {"run_id": 1, "started_at_utc": "2026-11-26T10:00:00+00:00", "status": "complete", "command": "gpualloc bench"}
    return [json.dumps({**run, "environment": asdict(GPU_ENVIRONMENT), "measurements": [to_json(measured(image_case(), 0.1))]}).encode()]


def _progress() -> list[bytes]:
    from gpualloc.launch.progress import Progress

    words = dict.fromkeys(("device", "strategy", "precision", "hook"), "x")
    numbers = dict.fromkeys(
        ("step", "num_steps", "epoch", "world_size", "first_step", "samples_per_step", "nonfinite_steps", "per_device_batch_size"), 8
    )
    return [json.dumps(asdict(Progress(**words, **numbers, step_times_s=(0.1, 0.2), loss=0.5, grad_accum_steps=1))).encode()]  # type: ignore[arg-type]


_STEPS = (
    "model,num_nodes,num_gpus,per_device_batch_size,step_time_s,sync_time_s\nbert,1,1,8,0.5,0\nbert,2,8,8,0.7,0.1\nbert,4,32,16,0.9,0.2\n"
)
_ROWS = (
    "cluster,model,num_nodes,num_gpus,placement,per_device_batch_size,image_size_px,gradient_bytes,step_time_s,sync_time_s,source\n"
    "lab,bert,1,2,2,8,,4e8,0.5,0.1,measured\nlab,vit,2,8,44,16,224,,0.25,,rehearsed\n"
)
_TRACE = (
    "job_id,submit_time_s,job_type,num_gpus,duration_s,min_gpus,max_gpus,gpu_types,work_scale,weight\n"
    "a,0,bert,,,1,8,t4;a100,2,1\nb,9.5,,4,600,,,,,\n"
)
_SETTINGS = (
    'quiet = true\n[bench]\nimage-size = [100, "200..300:100"]\nprecision = "fp16,fp32"\nchannels_last = true\n'
    '[watch]\ninterval = "5s"\n[watch.report]\nprice-per-hour = "2.50 EUR"\n[plan]\nobjective = "cost"\n'
)
_STUDY_TOML = (
    'warmup-steps = 2\nprecision = ["fp16"]\n[[grids]]\nworkload = "image"\nimage_size = "100..200:50"\n[[grids]]\nworkload = "llm"\n'
)
_SIMULATED = (
    "nodes:\n  - {gpu_type: t4, nodes: 4, gpus_per_node: 4, price_per_gpu_hour: 0.5}\n  - {gpu_type: a100, nodes: 2, gpus_per_node: 8}\n"
)
# What parsers of YAML, JSON and TOML are known to stumble over.
_ODD_YAML = (
    "a: 2026-13-45\n",
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "? []\n: 1",
    "&a [*a, *a]",
    "[" * 500,
    "0x" + "f" * 9000,
    "!!python/object:os.x {}",
)
_ODD_JSON = ("[" * 100_000, "1" * 5000, '"\\ud800"', "1e999", "NaN", '{"a": 1, "a": 2}', "\ufeff{}", "")
_ODD_TOML = ("a = " + "[" * 2000, "a = " + "1" * 5000, ".".join(["a"] * 3000) + " = 1", "a = 2026-02-30", "a = 1e999", "'' = 1")


def _with(seeds: Callable[[], list[bytes]], odd: tuple[str, ...]) -> Callable[[], list[bytes]]:
    return cache(lambda: [*seeds(), *(text.encode() for text in odd)])


PARSERS: dict[str, Reader] = {
    "workloads_yaml": Reader(".yaml", _read_workloads, _with(_files("examples/plan/workloads.yaml"), _ODD_YAML)),
    "workloads_json": Reader(".json", _read_workloads, _with(_as_json("examples/plan/workloads.yaml"), _ODD_JSON)),
    "cluster_yaml": Reader(".yaml", _read_cluster, _with(_files("examples/plan/cluster.yaml"), _ODD_YAML)),
    "cluster_json": Reader(".json", _read_cluster, _with(_as_json("examples/plan/cluster.yaml"), _ODD_JSON)),
    "simulated_cluster_yaml": Reader(".yaml", _read_simulated_cluster, _with(_texts(_SIMULATED), _ODD_YAML)),
    "simulated_cluster_json": Reader(".json", _read_simulated_cluster, _with(_texts(json.dumps(yaml.safe_load(_SIMULATED))), _ODD_JSON)),
    "study_yaml": Reader(".yaml", _read_study, _with(_files("examples/study.yaml", "examples/first_hour.yaml"), _ODD_YAML)),
    "study_toml": Reader(".toml", _read_study, _with(_texts(_STUDY_TOML), _ODD_TOML)),
    "settings": Reader(".toml", _read_settings, _with(_texts(_SETTINGS), _ODD_TOML)),
    "prices": Reader(".yaml", _read_prices, _with(_files("gpualloc/money/example_prices.yaml"), _ODD_YAML)),
    "link": Reader(".yaml", _read_link, _with(_files("gpualloc/rehearsal/links/nvlink4.yaml"), _ODD_YAML)),
    "plan": Reader(".json", _read_plan, _with(_plan, _ODD_JSON)),
    "forecast_rows": Reader(".csv", _read_rows, _with(_texts(_ROWS), ('"', "a,a\n1,2", "\x00"))),
    "forecast_queries": Reader(".csv", _read_queries, _with(_texts(_ROWS), ())),
    "forecast_model": Reader(".json", _read_model, _with(_model, _ODD_JSON)),
    "simulation_trace": Reader(
        ".csv", _read_trace, _with(_texts(_TRACE), ('"', "x" * 200_000, "job_id,submit_time_s,job_type\na,1e308,bert\n"))
    ),
    "measured_steps": Reader(".csv", _read_measured_steps, _with(_texts(_STEPS), ('"', "x" * 200_000))),
    "profile": Reader(".json", _read_profile, _with(_profile, _ODD_JSON)),
    "profiler_trace": Reader(".json", _read_profiler_trace, _with(_profiler_trace, _ODD_JSON)),
    "experiment": Reader(".json", _read_experiment, _with(_experiment, _ODD_JSON)),
    "exported_run": Reader(".json", _read_exported_run, _with(_exported_run, _ODD_JSON)),
    "progress": Reader("", _read_progress, _with(_progress, _ODD_JSON)),
    "script": Reader(
        ".py",
        _read_script,
        _with(
            _files("examples/train_image.py", "tests/ranks.py"),
            ("(" * 5000, "\x00", "x = " + "-" * 5000 + "1", "x" + ".a" * 900, "x = " + "1 + " * 900 + "1"),
        ),
    ),
}
