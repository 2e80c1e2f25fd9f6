"""The host as a device, for real; GPUs are in test_gpu_load.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from gpualloc.watching.gpus import NoGpusError
from gpualloc.watching.sampler import Sampler

pytestmark = pytest.mark.clock

ALLOCATED_BYTES = 200 * 2**20


def test_a_jobs_processes_are_on_the_host() -> None:
    code = f"data = bytearray(b'x' * {ALLOCATED_BYTES}); print('ready', flush=True)\nwhile True: pass"
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        job.stdout.readline()
        sampler = Sampler(device="cpu", pids=(job.pid,), interval_s=0.5)
        first = sampler.read()
        time.sleep(0.5)
        (host,) = sampler.read()
        assert [row.covers_s for row in first] == [None]
        assert host.covers_s == pytest.approx(0.5, abs=0.4)
        assert (host.kind, host.device_index, host.power_w) == ("cpu", None, None)
        assert host.utilisation_percent is not None
        assert host.utilisation_percent > 50 / (os.cpu_count() or 1)
        (process,) = host.processes or ()
        assert (process.pid, process.gpu_memory_bytes, process.sm_utilisation_percent) == (job.pid, None, None)
        assert process.cpu_percent is not None
        assert process.cpu_percent > 10
        assert process.rss_bytes is not None
        assert process.rss_bytes > ALLOCATED_BYTES
        assert not sampler.have_jobs_ended
    finally:
        job.kill()
        job.communicate()
    assert sampler.read()[0].processes == ()
    assert sampler.have_jobs_ended


def test_without_a_job_the_processes_are_not_known() -> None:
    sampler = Sampler(device="cpu", interval_s=5.0)
    assert sampler.read()[0].processes is None
    assert not sampler.have_jobs_ended


def test_a_sample_that_comes_late_speaks_for_no_time() -> None:
    sampler = Sampler(device="cpu", interval_s=0.05)
    covers_s = []
    for pause_s in (0.0, 0.05, 0.5, 0.05):
        time.sleep(pause_s)
        covers_s.append(sampler.read()[0].covers_s)
    assert [one is None for one in covers_s] == [True, False, True, False]


def test_the_overhead_grows_with_the_work() -> None:
    sampler = Sampler(device="cpu", interval_s=1.0)
    before = sampler.overhead()
    end_s = time.process_time() + 0.2
    while time.process_time() < end_s:
        pass
    after = sampler.overhead()
    assert 0.1 < after.cpu_time_s - before.cpu_time_s < 2.0
    assert after.percent_of_core == pytest.approx(after.cpu_time_s / after.elapsed_s * 100)
    assert 10**6 < after.rss_bytes < 10**11


def test_without_a_driver_auto_is_the_host_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sampler = Sampler(device="auto", interval_s=1.0)
    assert [row.kind for row in sampler.read()] == ["cpu"]
    assert sampler.why_no_gpus == "pynvml is missing; install it with: pip install nvidia-ml-py"
    for options in ({"device": "cuda"}, {"gpus": ("0",)}):
        with pytest.raises(NoGpusError, match="pynvml is missing"):
            Sampler(interval_s=1.0, **options)  # type: ignore[arg-type]
