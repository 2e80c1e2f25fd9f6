from pathlib import Path

import pytest

from gpualloc.store import ResultsStore
from tests.store.sample_measurements import CPU_ENVIRONMENT, GPU_ENVIRONMENT, cpu_run, gpu_run, measured


@pytest.fixture
def store_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default store, in which nothing is yet."""
    path = tmp_path / "results.sqlite"
    monkeypatch.setenv("GPUALLOC_STORE", str(path))
    monkeypatch.setenv("COLUMNS", "120")
    return path


@pytest.fixture
def filled(store_path: Path) -> Path:
    """Run 1 on GPUs, run 2 on a CPU (interrupted), run 3 like run 1 and 10 % faster, without its last four cases."""
    with ResultsStore(store_path) as store:
        for environment, rows in ((GPU_ENVIRONMENT, gpu_run()), (CPU_ENVIRONMENT, cpu_run())):
            run_id = store.begin_run(command=f"gpualloc bench --device {rows[0].case.device}", options={}, environment=environment)
            for row in rows:
                store.add(run_id, row)
            store.finish_run(run_id, "complete" if environment is GPU_ENVIRONMENT else "interrupted")
        run_id = store.begin_run(command="gpualloc bench --device cuda", options={}, environment=GPU_ENVIRONMENT)
        for row in gpu_run()[:-4]:
            store.add(run_id, measured(row.case, row.step_time_s * 0.9) if row.step_time_s else row)
    return store_path
