"""How NVML's answers are read where they are odd: refused, stale, garbage, cut into slices. Usual ones: test_gpu_load.py."""

from __future__ import annotations

import time
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from gpualloc.watching.gpus import GpuReader, GpuReading, NoGpusError
from tests.watching.fake_nvml import FakeNvml, process_samples, running, utilisation_samples


def reader(**answers: Any) -> GpuReader:
    return GpuReader(nvml=FakeNvml(**answers))


def read(**answers: Any) -> GpuReading:
    return reader(**answers).read()[0]


def test_a_gpu_that_answers_nothing_is_all_unknown() -> None:
    reading = read()
    known = {"kind": "gpu", "uuid": "GPU-0000", "index": 0, "name": "NVIDIA H100 80GB HBM3"}
    assert {field.name: getattr(reading, field.name) for field in fields(reading) if getattr(reading, field.name) is not None} == known


def test_units_are_those_of_the_names() -> None:
    reading = read(
        nvmlDeviceGetUtilizationRates=SimpleNamespace(gpu=93),
        nvmlDeviceGetMemoryInfo=SimpleNamespace(used=3 * 2**30, total=80 * 2**30),
        nvmlDeviceGetPowerUsage=612_345,
        nvmlDeviceGetEnforcedPowerLimit=700_000,
        nvmlDeviceGetClockInfo=lambda handle, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetTemperature=61,
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4 | 0x40 | 0x1,
    )
    assert (reading.utilisation_percent, reading.utilisation_readings) == (93.0, 1)
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (3 * 2**30, 80 * 2**30)
    assert (reading.power_w, reading.power_limit_w) == (612.345, 700.0)
    assert (reading.sm_clock_mhz, reading.mem_clock_mhz, reading.temperature_c) == (1980, 2619, 61)
    assert reading.throttle_reasons == ("power cap", "hardware thermal slowdown")  # 0x1, idle, holds nothing back


def test_memory_is_read_without_version_2_on_an_older_driver() -> None:
    def old(handle: str, version: int | None = None) -> Any:
        if version is not None:
            raise FakeNvml.NVMLError("Not Supported")
        return SimpleNamespace(used=5, total=10)

    assert read(nvmlDeviceGetMemoryInfo=old).memory_used_bytes == 5


def test_utilisation_is_the_mean_of_what_is_new_since_the_look_before() -> None:
    answers: dict[str, Any] = {"nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=7)}
    gpus = reader(**answers)
    nvml: Any = gpus._nvml

    def look(*rows: tuple[int, int], value_type: int = 1) -> tuple[float | None, int | None]:
        nvml.answers["nvmlDeviceGetSamples"] = utilisation_samples(*rows, value_type=value_type)
        reading = gpus.read()[0]
        return reading.utilisation_percent, reading.utilisation_readings

    assert look((10, 100), (20, 100)) == (7.0, 1)  # of the time before the first look
    assert look((10, 100), (20, 100), (30, 50), (40, 0), (50, 40)) == (30.0, 3)
    assert look((40, 0), (50, 40)) == (7.0, 1)  # nothing new
    assert look((60, 4_294_967_295)) == (7.0, 1)  # garbage
    assert look((70, 50), value_type=0) == (7.0, 1)  # another type than is read
    assert look((80, 50), (90, 52)) == (51.0, 2)
    del nvml.answers["nvmlDeviceGetSamples"]
    assert gpus.read()[0].utilisation_percent == 7.0
    nvml.answers["nvmlDeviceGetUtilizationRates"] = SimpleNamespace(gpu=4_294_967_295)
    assert gpus.read()[0].utilisation_percent is None


def test_energy_is_the_difference_of_the_counter_and_unknown_after_a_restart() -> None:
    counts = iter([1_000, 3_500, 200, 700])
    gpus = reader(nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts))
    assert [gpus.read()[0].energy_j for _ in range(4)] == [None, 2.5, None, 0.5]


def test_processes_have_their_memory_and_the_mean_of_their_utilisation() -> None:
    now_us = int(time.time() * 1e6)
    gpus = reader(
        nvmlDeviceGetComputeRunningProcesses=running((7, 2**30), (8, None)),
        nvmlDeviceGetGraphicsRunningProcesses=running((5, 2**20), (7, 2**10)),
        nvmlDeviceGetProcessUtilization=lambda handle, since_us: process_samples(
            (7, now_us + 10, 40), (7, now_us + 20, 60), (5, now_us + 10, 101), (9, now_us + 5, 80), (8, now_us - 10**7, 33)
        ),
    )
    rows = gpus.read()[0].processes
    assert rows is not None
    assert [(row.pid, row.gpu_memory_bytes, row.sm_utilisation_percent) for row in rows] == [
        (5, 2**20, None),
        (7, 2**30, 50.0),
        (8, None, None),
    ]
    assert [row.sm_utilisation_percent for row in gpus.read()[0].processes or ()] == [None, None, None]  # nothing new


def test_no_process_is_told_from_not_knowing() -> None:
    assert read(nvmlDeviceGetComputeRunningProcesses=[]).processes == ()
    assert read().processes is None


def test_mig_slices_come_beside_their_gpu() -> None:
    def slice_at(handle: str, place: int) -> str:
        if place == 1:
            raise FakeNvml.NVMLError("Not Found")
        return f"slice{place}"

    readings = reader(
        nvmlDeviceGetMigMode=[1, 1],
        nvmlDeviceGetMaxMigDeviceCount=3,
        nvmlDeviceGetMigDeviceHandleByIndex=slice_at,
        nvmlDeviceGetPowerUsage=300_000,
        nvmlDeviceGetMemoryInfo=lambda handle, **options: SimpleNamespace(used=len(handle), total=100),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: running((1, 5)) if handle == "slice2" else [],
    ).read()
    assert [(row.kind, row.uuid, row.index) for row in readings] == [
        ("gpu", "GPU-0000", 0),
        ("mig", "MIG-slice0", None),
        ("mig", "MIG-slice2", None),
    ]
    assert [row.power_w for row in readings] == [300.0, None, None]
    assert [row.utilisation_percent for row in readings] == [None, None, None]
    assert [row.processes and row.processes[0].pid for row in readings] == [(), (), 1]


@pytest.mark.parametrize(
    ("wanted", "uuids"), [(("1",), ["GPU-1111"]), (("GPU-0", "1"), ["GPU-0000", "GPU-1111"]), ((), ["GPU-0000", "GPU-1111", "GPU-2222"])]
)
def test_gpus_are_chosen_by_index_or_uuid(wanted: tuple[str, ...], uuids: list[str]) -> None:
    gpus = GpuReader(wanted, nvml=FakeNvml(nvmlDeviceGetCount=3))
    assert [row.uuid for row in gpus.read()] == uuids
    assert gpus.num_devices == len(uuids)


@pytest.mark.parametrize("name", ["2", "GPU-9", "H100", "-1"])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    nvml = FakeNvml(nvmlDeviceGetCount=2)
    with pytest.raises(NoGpusError, match=rf"--gpu '{name}' names no GPU of this machine, which has: 0 \(GPU-0000\), 1 \(GPU-1111\)"):
        GpuReader((name,), nvml=nvml)
    assert nvml.num_shutdowns == 1


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"nvmlInit": "Driver Not Loaded"}, r"does not answer \(Driver Not Loaded\); see gpualloc doctor"),
        ({"nvmlDeviceGetCount": 0}, "has no GPU"),
        ({"nvmlDeviceGetCount": lambda: 1 // 1 and (_ for _ in ()).throw(FakeNvml.NVMLError("Unknown"))}, "does not tell its GPUs"),
    ],
)
def test_why_there_are_no_gpus_is_told(answers: dict[str, Any], why: str) -> None:
    with pytest.raises(NoGpusError, match=why):
        reader(**answers)


def test_a_gpu_that_falls_off_the_bus_becomes_unknown_and_stays_in_the_list() -> None:
    gpus = reader(nvmlDeviceGetUtilizationRates=SimpleNamespace(gpu=50), nvmlDeviceGetPowerUsage=100_000)
    assert gpus.read()[0].power_w == 100.0
    nvml: Any = gpus._nvml
    nvml.answers.clear()
    reading = gpus.read()[0]
    assert (reading.uuid, reading.utilisation_percent, reading.power_w, reading.processes) == ("GPU-0000", None, None, None)
