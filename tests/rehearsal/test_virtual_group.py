"""What collectives of a virtual group give, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DeviceMesh, distribute_tensor
from torch.distributed.tensor.placement_types import Shard

from gpualloc.errors import GpuallocError, UsageError
from gpualloc.rehearsal import Rehearsal, links_take_no_time, rehearsed
from gpualloc.rehearsal.virtual_group import BACKEND
from tests.rehearsal.clusters import DEVICES, make_rehearsal, synchronize

pytestmark = [pytest.mark.parametrize("device", DEVICES), pytest.mark.clock]
_WORLD_SIZE = 4
_MB = 1_000_000


def _start(device: str) -> None:
    dist.init_process_group("nccl" if device == "cuda" else "gloo")


def _best_time(run: Callable[[], object], device: str, *, repeats: int = 5) -> float:
    times_s = []
    for _ in range(repeats):
        synchronize(device)
        start_s = time.perf_counter()
        run()
        synchronize(device)
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


@pytest.mark.parametrize(
    ("op", "expected"), [(dist.ReduceOp.SUM, 12.0), (dist.ReduceOp.AVG, 3.0), (dist.ReduceOp.MAX, 3.0), (dist.ReduceOp.PRODUCT, 81.0)]
)
def test_all_reduce_is_that_of_equal_ranks(device: str, op: dist.ReduceOp, expected: float, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        tensor = torch.full((5,), 3.0, device=device)
        dist.all_reduce(tensor, op=op)
        assert tensor.tolist() == [expected] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_all_reduce_keeps_the_dtype(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, 2)):
        _start(device)
        tensor = torch.ones(7, device=device, dtype=dtype)
        dist.all_reduce(tensor)
        assert tensor.dtype == dtype
        assert tensor.to(torch.float64).tolist() == [1.0 if dtype == torch.bool else 2.0] * 7


def test_gathers_repeat_and_scatters_keep_this_ranks_part(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        shard = torch.arange(3.0, device=device)
        whole = torch.full((12,), -1.0, device=device)
        dist.all_gather_into_tensor(whole, shard)
        assert whole.tolist() == [0.0, 1.0, 2.0] * 4

        parts = [torch.empty(3, device=device) for _ in range(_WORLD_SIZE)]
        dist.all_gather(parts, shard)
        assert all(part.tolist() == [0.0, 1.0, 2.0] for part in parts)

        out = torch.empty(3, device=device)
        dist.reduce_scatter_tensor(out, torch.arange(12.0, device=device))
        assert out.tolist() == [0.0, 4.0, 8.0]

        exchanged = torch.empty(8, device=device)
        dist.all_to_all_single(exchanged, torch.arange(8.0, device=device))
        assert exchanged.tolist() == [0.0, 1.0] * 4

        gathered = [torch.empty(3, device=device) for _ in range(_WORLD_SIZE)]
        dist.gather(shard, gathered, dst=0)
        assert all(part.tolist() == [0.0, 1.0, 2.0] for part in gathered)
        dist.scatter(out, [shard + rank for rank in range(_WORLD_SIZE)], src=0)
        assert out.tolist() == [0.0, 1.0, 2.0]


def test_an_all_gather_into_its_own_input(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        whole = torch.full((8,), -1.0, device=device)
        whole[:2] = torch.tensor([5.0, 6.0])
        dist.all_gather_into_tensor(whole, whole[:2])
        assert whole.tolist() == [5.0, 6.0] * 4


def test_a_message_comes_back(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, 2)):
        _start(device)
        sent, received = torch.rand(1000, device=device), torch.empty(1000, device=device)
        for work in dist.batch_isend_irecv([dist.P2POp(dist.irecv, received, 1), dist.P2POp(dist.isend, sent, 1)]):
            work.wait()
        synchronize(device)
        assert torch.equal(received, sent)
        stray = torch.full((3,), float("nan"), device=device)
        dist.recv(stray, 1)
        assert bool(stray.isfinite().all())


def test_objects_and_barrier(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, 3)):
        _start(device)
        objects: list[object] = [None] * 3
        dist.all_gather_object(objects, {"rank": 0})
        assert objects == [{"rank": 0}] * 3
        dist.barrier()


def test_what_a_collective_takes_is_the_model(device: str, tmp_path: Path) -> None:
    """All-reduce of 40 MB among 4 ranks at 1 GB/s: 2 x 3/4 x 40 ms, and 0.1 ms."""
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        tensor = torch.rand(10 * _MB, device=device)
        assert _best_time(lambda: dist.all_reduce(tensor), device) == pytest.approx(60.1e-3, rel=0.03)
        small = torch.rand(1, device=device)
        assert _best_time(lambda: dist.all_reduce(small), device) < 1e-3
        with links_take_no_time():
            assert _best_time(lambda: dist.all_reduce(small), device) < 1e-3
            assert _best_time(lambda: dist.all_reduce(tensor), device) < 40e-3


@pytest.mark.parametrize("num_groups", [1, 2])
def test_collectives_at_the_same_time_share_the_link(device: str, num_groups: int, tmp_path: Path) -> None:
    """Of one group they go in order, of two side by side at half the speed: either way both are through after twice the time of one."""
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        groups = [dist.group.WORLD, dist.new_group()] if num_groups == 2 else [dist.group.WORLD] * 2
        tensors = [torch.rand(4 * _MB, device=device) for _ in range(2)]

        def both() -> list[float]:
            synchronize(device)
            start_s, ends_s = time.perf_counter(), []
            works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor, group in zip(tensors, groups, strict=True)]
            for work in works:
                work.wait()
                synchronize(device if num_groups == 1 else "none")
                ends_s.append(time.perf_counter() - start_s)
            synchronize(device)
            return [*ends_s, time.perf_counter() - start_s]

        runs = [both() for _ in range(5)]
        assert min(run[-1] for run in runs) == pytest.approx(48.2e-3, rel=0.05)
        if device == "cpu":
            first_s = min(run[0] for run in runs)
            assert first_s < 30e-3 if num_groups == 1 else first_s > 30e-3


def test_a_collective_that_leaves_room_is_not_slowed_down(device: str, tmp_path: Path) -> None:
    """A link of 2 GB/s of which one collective reaches 1: two groups at a time take the time of one."""
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE, capacity_gb_s=2.0)):
        _start(device)
        groups = [dist.group.WORLD, dist.new_group()]
        tensors = [torch.rand(4 * _MB, device=device) for _ in range(2)]

        def both() -> None:
            works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor, group in zip(tensors, groups, strict=True)]
            for work in works:
                work.wait()

        alone_s = _best_time(lambda: dist.all_reduce(tensors[0]), device)
        assert alone_s == pytest.approx(24.1e-3, rel=0.08)
        # The host's own work on the second tensor comes on top; slowed down they would take twice as long.
        assert 0.98 * alone_s < _best_time(both, device) < 1.15 * alone_s


def test_computing_goes_on_meanwhile(device: str, tmp_path: Path) -> None:
    """The host is not held, and on CUDA the stream that computes is not either."""
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        tensor = torch.rand(10 * _MB, device=device)
        operand = torch.rand(64, 64, device=device)
        operand = (operand @ operand).softmax(0)  # libraries start up
        synchronize(device)
        start_s = time.perf_counter()
        work = dist.all_reduce(tensor, async_op=True)
        for _ in range(10):
            operand = (operand @ operand).softmax(0)
        if device == "cuda":
            torch.cuda.current_stream().synchronize()
        assert time.perf_counter() - start_s < 50e-3
        work.wait()
        synchronize(device)
        assert time.perf_counter() - start_s >= 60e-3


@pytest.mark.parametrize("hook", [None, "fp32", "fp16", "auto"])
def test_ddp_averages_as_if_all_ranks_were_alike(device: str, hook: str | None, tmp_path: Path) -> None:
    """The gradient is that of one rank: to the rounding of the wire."""
    from gpualloc import register_comm_hook

    inputs = torch.rand(8, 32, device=device)
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
    alone(inputs).square().mean().backward()
    with rehearsed(make_rehearsal(tmp_path, _WORLD_SIZE)):
        _start(device)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
        ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        if hook is not None:
            register_comm_hook(ddp, wire=hook)
        for _ in range(3):
            ddp.zero_grad()
            ddp(inputs).square().mean().backward()
        synchronize(device)
        # Messages that the FP16 exchange on a CPU sends come back, so that a shard is summed with others: right in size, not in value.
        exact = hook != "fp16" or device == "cuda"
        for expected, parameter in zip(alone.parameters(), model.parameters(), strict=True):
            assert parameter.grad is not None
            assert bool(parameter.grad.isfinite().all())
            if exact:
                torch.testing.assert_close(parameter.grad, expected.grad, rtol=2**-10, atol=2**-20)


def test_fsdp_holds_a_shard(device: str, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    with rehearsed(make_rehearsal(tmp_path, 8)):
        _start(device)
        mesh = dist.init_device_mesh(device, (8,))
        model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64)).to(device)
        total = sum(parameter.numel() for parameter in model.parameters())
        for layer in (*model, model):
            fully_shard(layer, mesh=mesh)
        held = sum(parameter.to_local().numel() for parameter in model.parameters())
        assert held == total // 8
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            model(torch.rand(4, 64, device=device)).mean().backward()
            optimizer.step()
        synchronize(device)
        assert all(bool(parameter.to_local().isfinite().all()) for parameter in model.parameters())


def test_a_mesh_of_two_dimensions_and_functional_collectives(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, 4)):
        _start(device)
        mesh = dist.init_device_mesh(device, (2, 2), mesh_dim_names=("data", "tensor"))
        rows: DeviceMesh = mesh["tensor"]
        sharded = distribute_tensor(torch.arange(8.0, device=device).view(4, 2), rows, [Shard(0)])
        assert sharded.to_local().shape == (2, 2)
        assert sharded.full_tensor().tolist() == [[0.0, 1.0], [2.0, 3.0]] * 2


def test_it_takes_the_place_of_any_backend_and_leaves_no_trace(device: str, tmp_path: Path) -> None:
    with rehearsed(make_rehearsal(tmp_path, 2)):
        dist.init_process_group()
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 2, BACKEND)
        sub = dist.new_group([0], backend="gloo")
        assert sub.size() == 1
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.get_backend() == "gloo"
        with pytest.raises(GpuallocError, match="exists already"), rehearsed(make_rehearsal(tmp_path, 2)):
            pass
    finally:
        dist.destroy_process_group()


def test_a_rehearsal_names_what_it_lacks(device: str) -> None:
    with pytest.raises(ValueError, match="needs a link"):
        Rehearsal(world_size=2, gpus_per_node=2)
    with pytest.raises(ValueError, match="network between them"):
        Rehearsal(world_size=4, gpus_per_node=2, link="nvlink4")
    with pytest.raises(ValueError, match="do not fill nodes"):
        Rehearsal(world_size=3, gpus_per_node=2, link="nvlink4", network="ib_ndr")
    with pytest.raises(UsageError, match="nvlink4"), rehearsed(Rehearsal(world_size=2, gpus_per_node=2, link="nvlink9")):
        pass
