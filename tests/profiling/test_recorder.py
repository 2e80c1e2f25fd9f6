"""What is recorded of a training loop, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.optim import optimizer as torch_optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset, dataloader

from gpualloc.errors import GpuallocError
from gpualloc.profiling import recorder as recorder_module
from gpualloc.profiling.analysis import analyse
from gpualloc.profiling.calibration import measure_op_overhead_us, measure_speed
from gpualloc.profiling.recorder import Recorder, TrainingStopped
from gpualloc.profiling.records import LoaderSetting
from gpualloc.profiling.trace import read_trace


def train(recorder: Recorder, num_steps: int, *, batch_size: int = 64, device: str = "cpu") -> int:
    """Trains at most so many steps, with a second optimizer beside the first one. Returns how many there were."""
    model, other = torch.nn.Linear(256, 256).to(device), torch.nn.Linear(2, 2).to(device)
    optimizer, other_optimizer = torch.optim.SGD(model.parameters(), lr=0.01), torch.optim.Adam(other.parameters())
    loader = DataLoader(TensorDataset(torch.randn(num_steps * batch_size, 256)), batch_size=batch_size)
    num_done = 0
    with recorder:
        try:
            for (batch,) in loader:
                optimizer.zero_grad()
                model(batch.to(device)).square().mean().backward()
                num_done += 1
                optimizer.step()
                other_optimizer.step()
        except TrainingStopped:
            pass
    return num_done


def make_recorder(tmp_path: Path, **options: Any) -> Recorder:
    return Recorder(**{"num_warmup_steps": 2, "num_steps": 3, "trace_path": tmp_path / "trace.json.gz", **options})


def test_a_loop_is_recorded_and_ended(tmp_path: Path) -> None:
    said: list[str] = []
    recorder = make_recorder(tmp_path, say=said.append)
    assert train(recorder, 50) == recorder.num_needed == 2 + 3 + 3 + 3
    assert recorder.is_done
    trace = read_trace(recorder.trace_path)
    assert len(trace.step_marks()) == 3 + 1
    assert [line.split()[0] for line in said] == ["first", "timing", "tracing", "counting"]

    found = analyse(recorder)
    assert found.times.input_wait_s > 0
    assert found.times.kernels_s > 0
    assert found.times.optimizer_s > 0
    assert found.times.exposed_comm_s == found.times.hidden_comm_s == 0
    assert found.costs is not None
    assert found.costs.total_flops == 2 * 2 * 64 * 256 * 256  # forward, and the weight's gradient
    assert found.loader == LoaderSetting(num_workers=0, pin_memory=False)
    assert (found.mfu, found.peak_source, found.gpu_busy, found.utilisation) == (None, None, None, None)
    assert found.memory.high_water_bytes > 50 * 2**20
    assert 0 < found.memory.headroom_bytes <= found.memory.total_bytes


@pytest.mark.clock
def test_the_parts_of_a_step_make_up_the_step(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    train(recorder, 50)
    found = analyse(recorder)
    assert found.times.step_time_s == pytest.approx(min(found.step_time_s, found.profiled_step_time_s), rel=0.5)


@pytest.mark.gpu
def test_a_loop_on_a_gpu(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    train(recorder, 50, batch_size=4096, device="cuda")
    found = analyse(recorder)
    times = found.times
    assert found.device == "cuda"
    assert min(times.input_wait_s, times.kernels_s, times.optimizer_s, times.matmul_s, times.host_to_device_s) > 0
    assert times.exposed_comm_s == times.hidden_comm_s == 0
    assert times.matmul_s <= times.kernels_s
    assert found.gpu_busy is not None
    assert 0 < found.gpu_busy < 1
    assert found.gpu_busy * found.profiled_step_time_s == pytest.approx(times.computing_s + times.host_to_device_s + times.other_memory_s)
    assert times.num_launches >= 8  # forward, backward, gradients set to 0, update
    assert times.num_synchronisations >= 1  # the batch comes from pageable memory
    assert found.costs is not None
    assert found.costs.total_flops == 2 * 2 * 4096 * 256 * 256  # the backward pass too, which runs in another thread
    assert 2**20 < found.memory.high_water_bytes < found.memory.total_bytes


def test_everything_is_put_back(tmp_path: Path) -> None:
    before = dataloader._BaseDataLoaderIter.__next__, dict(torch_optimizer._global_optimizer_post_hooks)
    train(make_recorder(tmp_path), 50)
    train(make_recorder(tmp_path), 9)  # ends while the profiler runs
    train(make_recorder(tmp_path), 10)  # ends while operators are counted
    assert before == (dataloader._BaseDataLoaderIter.__next__, dict(torch_optimizer._global_optimizer_post_hooks))
    assert torch._C._len_torch_dispatch_stack() == 0
    with profile(activities=[ProfilerActivity.CPU]):  # none is running
        pass


def test_without_stopping_the_loop_goes_on(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, stops=False)
    assert train(recorder, 20) == 20
    assert recorder.is_done
    assert recorder.num_done == recorder.num_needed


def test_too_short_a_training_is_refused_with_figures(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    train(recorder, 6)
    with pytest.raises(GpuallocError, match=r"ended after 6 steps and the profile needs 11; train longer, or lower --steps \(3\)"):
        analyse(recorder)
    with pytest.raises(GpuallocError, match="no optimizer step was seen"), make_recorder(tmp_path) as idle:
        analyse(idle)


def test_a_training_that_ends_after_the_trace_lacks_the_count_alone(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    train(recorder, 10)
    assert (recorder.is_traced, recorder.is_done) == (True, False)
    assert analyse(recorder).costs is None


def test_gloos_threads_are_waited_for_before_the_profiler_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they close afterwards is in memory that was given back."""
    said: list[str] = []
    stop = profile.stop
    monkeypatch.setattr(recorder_module.time, "sleep", lambda seconds: said.append("waited"))
    monkeypatch.setattr(profile, "stop", lambda self: (said.append("stopped"), stop(self)))
    train(make_recorder(tmp_path), 50)
    assert said == ["stopped"]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train(make_recorder(tmp_path), 50)
    finally:
        dist.destroy_process_group()
    assert said == ["stopped", "waited", "stopped"]


def test_another_profiler_is_refused(tmp_path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU]), pytest.raises(GpuallocError, match="turn off the profiler that the script uses"):
        train(make_recorder(tmp_path), 50)


def test_a_trace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpuallocError, match="name another folder with --trace-dir"):
        train(make_recorder(tmp_path, trace_path=tmp_path / "missing" / "trace.json"), 50)


def test_the_machines_speed_is_plausible() -> None:
    speed = measure_speed(torch.device("cpu"), "fp32")
    assert 1e9 < speed.matmul_flops_per_s < 1e14
    assert 1e8 < speed.copy_bytes_per_s < 1e13
    assert measure_speed(torch.device("cpu"), "fp8").matmul_format == "bf16"
    assert 0.1 < measure_op_overhead_us() < 1000


@pytest.mark.gpu
def test_the_gpus_speed_is_plausible() -> None:
    speed = measure_speed(torch.device("cuda"), "bf16")
    assert 1e12 < speed.matmul_flops_per_s < 1e16
    assert 1e10 < speed.copy_bytes_per_s < 1e14
