"""Traces as torch writes them here, and files that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from gpualloc.errors import GpuallocError
from gpualloc.profiling.trace import STEP_MARK, is_communication, is_host_to_device, parse_trace, read_trace
from tests.profiling.made_profiles import ALL_REDUCE_KERNEL, event, marked


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_what_torch_names_is_found(tmp_path: Path, name: str) -> None:
    """The names of torch's own ranges, which the breakdown rests on."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    loader = iter(DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(2):
            (batch,) = next(loader)
            model(batch).sum().backward()
            optimizer.step()
            with record_function(STEP_MARK):
                pass
    path = tmp_path / name
    recorded.export_chrome_trace(str(path))
    trace = read_trace(path)
    assert len(trace.step_marks()) == len(trace.input_ranges()) == len(trace.optimizer_ranges()) == 2
    assert {"aten::linear", "aten::addmm"} <= {op.name for op in trace.ops}
    assert all(a.start_us <= b.start_us for a, b in zip(trace.ops, trace.ops[1:], strict=False))
    assert trace.kernels == trace.copies == trace.host_collectives() == ()


def test_a_loader_in_another_thread_is_not_waited_for() -> None:
    name = "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"
    trace = marked(event("user_annotation", name, 1, 2), event("user_annotation", name, 3, 4, thread=2))
    assert [each.pair for each in trace.input_ranges()] == [(1, 2)]


def test_the_device_is_told_apart() -> None:
    trace = parse_trace(
        [
            event("kernel", ALL_REDUCE_KERNEL, 5, 9, correlation=3),
            event("kernel", "void gemm()", 1, 2),
            event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 3, 4),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 3, 4),
            event("gpu_memset", "Memset (Device)", 3, 4),
            event("cuda_runtime", "cudaLaunchKernel", 0, 1, correlation=3),
            event("gpu_user_annotation", "nccl:all_reduce", 0, 1),
        ]
    )
    assert [is_communication(kernel) for kernel in trace.kernels] == [False, True]
    assert [is_host_to_device(copy) for copy in trace.copies] == [True, False, False]
    assert trace.launches[0].correlation == trace.kernels[1].correlation == 3
    assert trace.annotations == ()


def test_the_recorders_own_wait_is_not_counted() -> None:
    own = event("user_annotation", "gpualloc::wait", 10, 20)
    waits = [event("cuda_runtime", "cudaStreamSynchronize", 5, 6), event("cuda_runtime", "cudaDeviceSynchronize", 12, 19)]
    assert [each.name for each in marked(own, *waits).synchronisations()] == ["cudaStreamSynchronize"]


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", json.dumps({"traceEvents": [{"ph": "X", "cat": "kernel"}]}).encode(), gzip.compress(b"{}", mtime=0)[:-9]],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(GpuallocError, match=r"trace\.json cannot be read: .*export_chrome_trace"):
        read_trace(path)
    with pytest.raises(GpuallocError, match="cannot be read: FileNotFoundError"):
        read_trace(tmp_path / "missing.json")
