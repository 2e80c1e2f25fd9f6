"""Samples of all watched devices at a time, and what taking them costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from gpualloc.watching.gpus import GpuProcess, GpuReader, GpuReading, NoGpusError
from gpualloc.watching.host import HostReader, ProcessReader, WatchedJobs
from gpualloc.watching.samples import DeviceSample, ProcessSample

_MAX_INTERVALS = 3  # a sample that comes later than this speaks for no time: what happened meanwhile is not known


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What the watching itself takes since its first sample."""

    cpu_time_s: float
    elapsed_s: float
    rss_bytes: int

    @property
    def percent_of_core(self) -> float | None:
        return self.cpu_time_s / self.elapsed_s * 100 if self.elapsed_s > 0 else None


class Sampler:
    """Reads the host and, unless `device` is "cpu", the GPUs.

    Args:
        device: "cuda", "cpu", or "auto" for the GPUs where there are any.
        gpus: indices or UUIDs; empty for all.
        pids: jobs whose processes are sampled on the host, with all that they start.
        interval_s: the time between two calls of `read` that is meant.

    Raises:
        NoGpusError: "cuda" without a GPU.
        UsageError: a pid that does not exist.
    """

    def __init__(self, *, device: str = "auto", gpus: tuple[str, ...] = (), pids: tuple[int, ...] = (), interval_s: float) -> None:
        self._interval_s = interval_s
        self._host, self._processes = HostReader(), ProcessReader()
        self._jobs = WatchedJobs(pids) if pids else None
        self.why_no_gpus: str | None = None
        self._gpus: GpuReader | None = None
        if device != "cpu":
            try:
                self._gpus = GpuReader(gpus)
            except NoGpusError as error:
                if device == "cuda" or gpus:
                    raise
                self.why_no_gpus = str(error)
        self._read_at_s: float | None = None  # monotonic
        self.have_jobs_ended = False
        self._own = psutil.Process()
        self._own_cpu_at_start_s, self._started_at_s = time.process_time(), time.monotonic()

    def close(self) -> None:
        if self._gpus is not None:
            self._gpus.close()

    @property
    def host(self) -> str:
        return self._host.host

    def describe(self) -> str:
        """ "2 GPUs of hostname", "the host hostname, CPU name"."""
        num_gpus = 0 if self._gpus is None else self._gpus.num_devices
        if not num_gpus:
            return f"the host {self._host.host}, {self._host.name}"
        return f"{num_gpus} GPU{'s' if num_gpus > 1 else ''} and the host {self._host.host}"

    def read(self) -> list[DeviceSample]:
        """One sample of each device, GPUs first, then the host."""
        now_s, time_unix_s = time.monotonic(), time.time()
        elapsed_s = None if self._read_at_s is None else now_s - self._read_at_s
        self._read_at_s = now_s
        covers_s = elapsed_s if elapsed_s is not None and elapsed_s <= _MAX_INTERVALS * self._interval_s else None
        job_pids = self._jobs.pids() if self._jobs else []
        readings = self._gpus.read() if self._gpus else []
        samples = [self._gpu_sample(reading, time_unix_s, covers_s) for reading in readings]
        samples.append(self._host_sample(job_pids if self._jobs else None, time_unix_s, covers_s))
        self.have_jobs_ended = self._jobs is not None and not job_pids
        self._processes.end_look({process.pid for sample in samples for process in sample.processes or ()})
        return samples

    def overhead(self) -> Overhead:
        """Since the sampler was made."""
        return Overhead(
            cpu_time_s=time.process_time() - self._own_cpu_at_start_s,
            elapsed_s=time.monotonic() - self._started_at_s,
            rss_bytes=int(self._own.memory_info().rss),
        )

    def _gpu_sample(self, reading: GpuReading, time_unix_s: float, covers_s: float | None) -> DeviceSample:
        return DeviceSample(
            time_unix_s=time_unix_s,
            covers_s=covers_s,
            host=self._host.host,
            kind=reading.kind,
            device_uuid=reading.uuid,
            device_index=reading.index,
            device_name=reading.name,
            utilisation_percent=reading.utilisation_percent,
            utilisation_readings=reading.utilisation_readings,
            memory_used_bytes=reading.memory_used_bytes,
            memory_total_bytes=reading.memory_total_bytes,
            power_w=reading.power_w,
            power_limit_w=reading.power_limit_w,
            energy_j=reading.energy_j if covers_s is not None else None,
            sm_clock_mhz=reading.sm_clock_mhz,
            mem_clock_mhz=reading.mem_clock_mhz,
            temperature_c=reading.temperature_c,
            throttle_reasons=reading.throttle_reasons,
            processes=None if reading.processes is None else tuple(self._process(row.pid, row) for row in reading.processes),
        )

    def _host_sample(self, job_pids: list[int] | None, time_unix_s: float, covers_s: float | None) -> DeviceSample:
        used, total = self._host.read_memory_bytes()
        return DeviceSample(
            time_unix_s=time_unix_s,
            covers_s=covers_s,
            host=self._host.host,
            kind="cpu",
            device_uuid=f"host-{self._host.host}",
            device_index=None,
            device_name=self._host.name,
            utilisation_percent=self._host.read_utilisation_percent(),
            memory_used_bytes=used,
            memory_total_bytes=total,
            processes=None if job_pids is None else tuple(self._process(pid, None) for pid in job_pids),
        )

    def _process(self, pid: int, on_gpu: GpuProcess | None) -> ProcessSample:
        seen = self._processes.read(pid, is_drivers_number=on_gpu is not None)
        return ProcessSample(
            pid=pid,
            started_unix_s=seen.started_unix_s,
            user=seen.user,
            command=seen.command,
            gpu_memory_bytes=on_gpu.gpu_memory_bytes if on_gpu else None,
            sm_utilisation_percent=on_gpu.sm_utilisation_percent if on_gpu else None,
            cpu_percent=seen.cpu_percent,
            rss_bytes=seen.rss_bytes,
        )
