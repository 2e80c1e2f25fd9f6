"""Pipeline parallelism: consecutive parts of the model on consecutive ranks, fed with micro-batches in 1F1B order.

torch.distributed.pipelining. "pipeline" is one pipeline over all ranks; "pipeline_ddp" is two of half as many stages, whose equal
stages average their gradients with DDP. All ranks of a pipeline open the same batches; the first uses the inputs, the last the targets.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.parallel import DistributedDataParallel

from gpualloc.records import BenchCase
from gpualloc.strategies.layout import data_ranks, num_microbatches, num_stages
from gpualloc.strategies.wrapped import Autocast, Batch, Scale, UnderAutocast, Wrapped
from gpualloc.workloads import compute_loss


def wrap(case: BenchCase, model: nn.Module, device: torch.device) -> Wrapped:
    """This rank's stage: as many parts of the model as any other's, give or take one."""
    mesh = init_device_mesh(device.type, (data_ranks(case), num_stages(case)), mesh_dim_names=("replicate", "stage"))
    stage_index = mesh.get_local_rank("stage")
    parts: list[nn.Module] = model.parts()  # type: ignore[operator]
    stages = [nn.Sequential(*stage_parts) for stage_parts in split_evenly(parts, num_stages(case))]
    shared = _shared_parameters(stages[0], stages[-1])
    stage = UnderAutocast(stages[stage_index]).to(device)
    stage_model: nn.Module = stage
    if case.strategy == "pipeline_ddp":
        device_ids = [device] if device.type == "cuda" else None
        stage_model = DistributedDataParallel(
            stage, device_ids=device_ids, process_group=mesh.get_group("replicate"), gradient_as_bucket_view=True
        )
    group = mesh.get_group("stage")
    ends = _group_of_ends(mesh.mesh) if shared else None
    microbatches = num_microbatches(case)
    assert microbatches is not None  # else the grid has skipped the case
    loss_fn = _Loss(microbatches)
    schedule = Schedule1F1B(
        PipelineStage(stage_model, stage_index, num_stages(case), device, group=group), microbatches, loss_fn, scale_grads=False
    )
    is_first, is_last = stage_index == 0, stage_index == num_stages(case) - 1

    def run_batch(batch: Batch, *, autocast: Autocast, scale: Scale) -> Tensor:
        inputs, targets = batch
        stage.autocast = autocast
        loss_fn.begin(scale)
        schedule.step(*([inputs] if is_first else []), target=targets if is_last else None, return_outputs=False)
        if is_first or is_last:
            for parameter in shared:  # copies that stay equal: both get the sum of what both contribute
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=ends)
        if is_last:
            return loss_fn.mean()
        no_loss = torch.zeros((), device=device)
        scale(no_loss)  # a GradScaler makes its scale when first used, and steps with it
        return no_loss

    return Wrapped(
        model=stage_model,
        no_sync=None,
        wire_bytes_per_step=None,
        run_batch=run_batch,
        shard=stage_index,
        knows_loss=is_last,
        is_sharded=True,
    )


def split_evenly(parts: list[nn.Module], num_groups: int) -> list[list[nn.Module]]:
    """Consecutive groups whose sizes differ by one at most."""
    return [parts[len(parts) * i // num_groups : len(parts) * (i + 1) // num_groups] for i in range(num_groups)]


class _Loss:
    """The loss of one micro-batch as its share of the batch's mean, scaled for backward; those of a step are remembered unscaled."""

    def __init__(self, num_microbatches: int) -> None:
        self._num_microbatches = num_microbatches
        self._scale: Scale = _identity
        self._losses: list[Tensor] = []

    def begin(self, scale: Scale) -> None:
        self._scale = scale
        self._losses.clear()

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = compute_loss(nn.Identity(), (logits, targets)) / self._num_microbatches
        self._losses.append(loss.detach())
        return self._scale(loss)

    def mean(self) -> Tensor:
        return torch.stack(self._losses[-self._num_microbatches :]).sum()  # torch's first step tries one more


def _identity(loss: Tensor) -> Tensor:
    return loss


def _shared_parameters(first: nn.Module, last: nn.Module) -> list[nn.Parameter]:
    """Parameters that two stages have, in the first one's order: output weights tied to an embedding."""
    ids = {id(parameter) for parameter in last.parameters()}
    return [parameter for parameter in first.parameters() if id(parameter) in ids]


def _group_of_ends(ranks: Tensor) -> dist.ProcessGroup | None:
    """The first and the last rank of this rank's pipeline, [replicas, stages] -> group; every rank takes part in making all of them."""
    own = None
    for first, *_, last in ranks.tolist():
        group = dist.new_group([first, last])
        if dist.get_rank() in (first, last):
            own = group
    return own
