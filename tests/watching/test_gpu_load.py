"""A real load on a real GPU, seen in the samples. In a container the driver may count processes otherwise, or show none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpualloc.watching import DeviceSample, WatchStore
from gpualloc.watching.sampler import Sampler
from gpualloc.watching.samples import from_json

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
ENTRY = "from gpualloc.cli.app import main; main()"
HELD_BYTES = 2 * 2**30
MAX_PERCENT_OF_CORE = 1.0  # at the default interval
INTERVAL_S = 5.0
LOAD = f"""
import sys, time, torch
held = torch.empty({HELD_BYTES}, dtype=torch.uint8, device="cuda")
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
(a @ a).sum().item()
print(torch.cuda.get_device_properties(0).uuid, flush=True)
while sys.argv[1] == "busy":
    for _ in range(20):
        b = a @ a
    done = torch.cuda.Event()
    done.record()
    while not done.query():  # where synchronize() sleeps, as in some virtual machines, the process would take no CPU time
        pass
time.sleep(600)
"""


class Load:
    """A process with 2 GiB on the first visible GPU, busy or not."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", LOAD, kind], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.uuid = f"GPU-{self.process.stdout.readline().strip()}"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def busy() -> Iterator[Load]:
    load = Load("busy")
    time.sleep(2)
    yield load
    load.end()


@pytest.fixture
def resting() -> Iterator[Load]:
    load = Load("resting")
    time.sleep(2)
    yield load
    load.end()


def watch(*arguments: str) -> tuple[list[DeviceSample], str]:
    command = [sys.executable, "-c", ENTRY, "watch", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return [from_json(json.loads(line)) for line in done.stdout.splitlines()], done.stderr


def of(samples: list[DeviceSample], uuid: str) -> list[DeviceSample]:
    found = [sample for sample in samples if sample.device_uuid == uuid]
    assert found, f"{uuid} is not among {sorted({sample.device_uuid for sample in samples})}"
    return found


def known(value: Any) -> Any:
    assert value is not None
    return value


def test_a_busy_gpu_is_seen_busy(busy: Load, tmp_path: Path) -> None:
    store_path = tmp_path / "watch.sqlite"
    samples, errors = watch("--interval", "1s", "--duration", "5s", "--store", str(store_path))
    gpu = of(samples, busy.uuid)[1:]
    print("\n".join(json.dumps(sample.to_json()) for sample in gpu[-2:]), errors)
    assert len(gpu) == 5
    for sample in gpu:
        assert known(sample.utilisation_percent) > 70
        assert HELD_BYTES < known(sample.memory_used_bytes) < known(sample.memory_total_bytes)
        assert 0 < known(sample.power_w) < 1.5 * known(sample.power_limit_w)
        assert 200 < known(sample.sm_clock_mhz) < 5000
        assert 200 < known(sample.mem_clock_mhz) < 10000
        assert 15 < known(sample.temperature_c) < 100
        assert sample.throttle_reasons is not None
        # The counter of energy and the momentary power tell the same, within the noise of a load.
        assert known(sample.energy_j) / known(sample.covers_s) == pytest.approx(known(sample.power_w), rel=0.5)
    with WatchStore(store_path, create=False) as store:
        assert of(list(store.samples()), busy.uuid)[1:] == gpu


def test_the_process_is_on_the_gpu_with_its_memory(busy: Load) -> None:
    samples, _ = watch("--interval", "1s", "--duration", "3s", "--no-store", "--pid", str(busy.process.pid))
    gpu, host = of(samples, busy.uuid)[-1], [sample for sample in samples if sample.kind == "cpu"][-1]
    assert [process.pid for process in host.processes or ()] == [busy.process.pid]
    assert known((host.processes or ())[0].cpu_percent) > 10
    processes = known(gpu.processes)
    if not processes:
        pytest.skip("the driver shows no processes here, as in some containers")
    holding = [process for process in processes if (process.gpu_memory_bytes or 0) > HELD_BYTES]
    if not any(process.gpu_memory_bytes is not None for process in processes):
        pytest.skip("the driver does not tell the memory of processes here")
    assert holding
    own = [process for process in processes if process.pid == busy.process.pid]
    if os.readlink("/proc/self/ns/pid") == "pid:[4026531836]":  # not in a container: the numbers are the same
        assert own
    if own:
        assert own[0] in holding
        assert own[0].command in (None, f"{Path(sys.executable).name} -c")
    for process in processes:
        assert process.sm_utilisation_percent is None or 0 <= process.sm_utilisation_percent <= 100


def test_utilisation_is_averaged_over_the_interval_or_says_that_it_is_not(busy: Load) -> None:
    sampler = Sampler(device="cuda", interval_s=2.0)
    sampler.read()
    time.sleep(2.0)
    sample = of(sampler.read(), busy.uuid)[0]
    sampler.close()
    readings = known(sample.utilisation_readings)
    print(f"{readings} readings averaged to {sample.utilisation_percent} %")
    assert readings >= 1
    assert known(sample.utilisation_percent) > 70


def test_sampling_takes_less_than_one_percent_of_a_core_at_5_s(busy: Load) -> None:
    sampler = Sampler(device="cuda", interval_s=INTERVAL_S)
    sampler.read()
    before, num_looks = sampler.overhead(), 20
    for _ in range(num_looks):
        time.sleep(0.2)
        sampler.read()
    cpu_time_s = (sampler.overhead().cpu_time_s - before.cpu_time_s) / num_looks
    sampler.close()
    print(f"{cpu_time_s * 1e3:.2f} ms of CPU a look, {cpu_time_s / INTERVAL_S:.3%} of a core at {INTERVAL_S:g} s")
    assert cpu_time_s / INTERVAL_S * 100 < MAX_PERCENT_OF_CORE


def test_a_gpu_that_only_holds_memory_is_idle_and_its_holder_is_charged(resting: Load, tmp_path: Path) -> None:
    store_path = str(tmp_path / "watch.sqlite")
    if _others_use(resting.uuid):
        pytest.skip("another process keeps the GPU busy")
    rule = ("--for", "5s", "--store", store_path)
    _, errors = watch("--interval", "500ms", "--duration", "12s", *rule)
    assert "warning: GPU" in errors
    assert "is idle: below 5 % for 5s" in errors
    command = [sys.executable, "-c", ENTRY, "watch", "report", "--json", "--price-per-hour", "3600 EUR", *rule]
    data = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True).stdout)
    (device,) = [one for one in data["devices"] if one["device_uuid"] == resting.uuid]
    assert [span["kind"] for span in device["spans"]] == ["idle"]
    assert device["cost"] == pytest.approx(device["idle_s"], rel=0.06)  # 1 EUR a second, of which less than 5 % was used
    assert device["idle_s"] > 9
    assert device["peak_memory_used_bytes"] > HELD_BYTES
    assert data["by_process"]


def _others_use(uuid: str) -> bool:
    sampler = Sampler(device="cuda", interval_s=1.0)
    sampler.read()
    time.sleep(1.0)
    percent = of(sampler.read(), uuid)[0].utilisation_percent
    sampler.close()
    return (percent or 0.0) >= 5.0


def test_a_load_that_comes_and_goes_is_followed() -> None:
    sampler = Sampler(device="cuda", interval_s=1.0)
    sampler.read()
    load = Load("busy")
    time.sleep(3)
    sampler.read()
    time.sleep(1)
    during = of(sampler.read(), load.uuid)[0]
    load.end()
    time.sleep(3)
    sampler.read()
    time.sleep(1)
    after = of(sampler.read(), load.uuid)[0]
    sampler.close()
    assert known(during.utilisation_percent) > 70
    assert known(during.memory_used_bytes) - known(after.memory_used_bytes) > 0.9 * HELD_BYTES
    assert load.process.pid not in [process.pid for process in after.processes or ()]
