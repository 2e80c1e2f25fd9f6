"""What `register_comm_hook` returns: the hook's figures, and its state for checkpoints."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gpualloc.comm.explain import explain
from gpualloc.errors import GpuallocError, UsageError

STATE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class HookStats:
    """Totals since the hook was registered, or since the run whose state it loaded; and the last step that was timed.

    One step in 16 is timed (while `wire="auto"` tries plans, every one), by device events or the host's clock, without waiting.
    """

    wire: str  # "auto", "fp32", "fp16", "bf16" or "int8"
    native: bool  # whether the compiled hook runs, or its Python stand-in
    steps: int  # synchronised backward passes
    transfers: int  # collectives of gradients; buckets that travel together are one
    wire_bytes: int  # gradient bytes this rank handed to them
    wire_scale: float  # what FP16 gradients are multiplied with on the wire
    nonfinite_steps: int | None  # steps in which a narrowed average held inf or NaN; None for wire="fp32", which does not look
    saturated_steps: int  # steps in which a gradient had grown beyond the wire scale's room and was cut to it, on some rank
    step_time_s: float | None  # from one step's first bucket to the next one's
    compute_time_s: float | None  # the step without its exposed communication
    comm_time_s: float | None  # sum over the transfers, each from the moment it could start
    exposed_comm_s: float | None  # from the last gradient computed to the last average written
    hidden_comm_s: float | None  # comm_time_s - exposed_comm_s, not below 0

    @property
    def overlap_ratio(self) -> float | None:
        """Hidden over all communication; None where there was none or none was timed."""
        if not self.comm_time_s or self.hidden_comm_s is None:
            return None
        return self.hidden_comm_s / self.comm_time_s


class HookTotals(Protocol):
    """The counting part of a hook's state: compiled (gpualloc._C.HookTotals) or Python."""

    steps: int
    transfers: int
    wire_bytes: int
    nonfinite_steps: int
    saturated_steps: int


class StepTimes(Protocol):
    """One step's communication, seconds (gpualloc._C.StepTimes)."""

    period_s: float
    comm_s: float
    exposed_s: float
    hidden_s: float


class HookGlance(Protocol):
    """What is known without waiting (gpualloc._C.HookGlance)."""

    @property
    def counted(self) -> HookTotals: ...  # on the host: non-finite and saturated steps only of the run whose state was loaded
    @property
    def counters(self) -> Tensor | None: ...  # [3] FP64 on the device: non-finite and saturated steps, the wire scale; None: none yet
    @property
    def times(self) -> StepTimes | None: ...  # of the last timed step, if the device has come that far
    @property
    def timed_step(self) -> int: ...  # which one that was


class HookState(Protocol):
    """A hook's state: compiled (gpualloc._C.GradientHookState) or Python."""

    def steps(self) -> int: ...
    def glance(self) -> HookGlance: ...
    def totals(self) -> HookTotals: ...
    def wire_scale(self) -> float: ...
    def times(self) -> StepTimes | None: ...
    def memory(self) -> dict[str, Any]: ...
    def load(self, totals: Any, *, wire_scale: float | None, plan: list[Any], buckets: list[Any], feedback: list[Tensor]) -> None: ...
    def last_nonfinite(self) -> list[Tensor]: ...
    def last_sumsq(self) -> list[Tensor]: ...
    def last_uncounted(self) -> list[Tensor]: ...
    def decisions(self) -> dict[str, Any] | None: ...
    def freeze(self, frozen: bool) -> None: ...


_handles: weakref.WeakKeyDictionary[DistributedDataParallel, HookHandle] = weakref.WeakKeyDictionary()


def undecided_hooks() -> int:
    """Hooks of this process, of models that are in training, which still measure which plan is fastest."""
    return sum(not handle.decided for handle in _handles.values() if handle.stats().steps > 0)


class HookHandle:
    """The registered hook. Valid as long as the DDP model lives."""

    def __init__(
        self, ddp_model: DistributedDataParallel, state: HookState, totals_type: Any, *, wire: str, native: bool, sum_squares: bool = False
    ) -> None:
        self._parameters = [parameter for parameter in ddp_model.parameters() if parameter.requires_grad]
        self._world_size = ddp_model.process_group.size()
        self._state = state
        self._totals_type = totals_type
        self._wire = wire
        self._native = native
        self._sum_squares = sum_squares and native
        _handles[ddp_model] = self

    def stats(self) -> HookStats:
        """The totals so far. Waits for the device; call it between steps, not in every one."""
        totals = self._state.totals()
        times = self._state.times()
        return HookStats(
            wire=self._wire,
            native=self._native,
            steps=totals.steps,
            transfers=totals.transfers,
            wire_bytes=totals.wire_bytes,
            wire_scale=self._state.wire_scale(),
            nonfinite_steps=None if self._wire == "fp32" else totals.nonfinite_steps,
            saturated_steps=totals.saturated_steps,
            step_time_s=times.period_s if times else None,
            compute_time_s=times.period_s - times.exposed_s if times else None,
            comm_time_s=times.comm_s if times else None,
            exposed_comm_s=times.exposed_s if times else None,
            hidden_comm_s=times.hidden_s if times else None,
        )

    @property
    def wire(self) -> str:
        """As it was registered: "auto", "fp32", "fp16", "bf16" or "int8"."""
        return self._wire

    @property
    def steps(self) -> int:
        """Synchronised backward passes so far; asking costs nothing."""
        return self._state.steps()

    def glance(self) -> HookGlance:
        """What is known without waiting for the device or for other ranks; `gpualloc.comm.StatsLogger` logs it."""
        return self._state.glance()

    @property
    def decided(self) -> bool:
        """Whether `wire="auto"` has measured and chosen its plan; always true for a fixed wire."""
        decisions = self._state.decisions()
        return decisions is None or bool(decisions["decided"])

    def explain(self) -> str:
        """What travels how, and why, as a table for people. The same on every rank once `decided`."""
        return explain(self._state.decisions(), self._state.times(), wire=self._wire, world_size=self._world_size)

    def freeze(self) -> None:
        """Keep the present plan: `wire="auto"` neither measures nor decides again until `unfreeze`. Call it on every rank alike."""
        self._state.freeze(True)

    def unfreeze(self) -> None:
        """Undo `freeze`."""
        self._state.freeze(False)

    def found_inf(self) -> Tensor:
        """Whether the last step's averaged gradients hold inf or NaN: [1] FP32, 1.0 or 0.0, the same on every rank.

        On the first parameter's device, without waiting for it: what GradScaler and the fused optimizers call `found_inf`.
        Gradients that were not narrowed are looked at here.
        """
        found = torch.zeros(1, device=self._parameters[0].device)
        for count in self._state.last_nonfinite():
            found += count.to(found.device)
        for gradient in self._uncounted():
            found += gradient.isfinite().all().logical_not().to(found.device)
        return found.clamp_(max=1.0)

    def grad_norm(self) -> Tensor:
        """The 2-norm over all averaged gradients of the last step: [] FP32, the same on every rank, without waiting.

        With `sum_squares=True` at registration FP32 gradients were summed while they were written back; only others are read again.
        Divide by the GradScaler's scale where there is one; clip or unscale afterwards.
        """
        device = self._parameters[0].device
        read = self._uncounted() if self._sum_squares else self._gradients()
        norms = [torch.linalg.vector_norm(gradient).double().to(device) for gradient in read]
        if self._sum_squares:
            norms += [sum_.to(device).sqrt() for sum_ in self._state.last_sumsq()]
        return torch.stack(norms).square().sum().sqrt().float() if norms else torch.zeros((), device=device)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """As `torch.nn.utils.clip_grad_norm_` of all parameters, with `grad_norm()` in place of its own pass over the gradients.

        Returns:
            The norm before clipping, [] FP32.

        Raises:
            UsageError: max_norm is not a positive number.
        """
        if not max_norm > 0:
            raise UsageError(f"clip_grad_norm_: max_norm={max_norm} is not a positive number; give the largest norm to keep, such as 1.0")
        norm = self.grad_norm()
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for device, gradients in _by_device(self._gradients()).items():
            torch._foreach_mul_(gradients, coefficient.to(device))
        return norm

    def _gradients(self) -> list[Tensor]:
        """The gradients there are; sparse ones as their values."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]

    def _uncounted(self) -> list[Tensor]:
        """The last step's averaged buckets that the hook did not look into; sparse ones as their values."""
        return [bucket.coalesce().values() if bucket.is_sparse else bucket for bucket in self._state.last_uncounted()]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint beside the model's: plain numbers and strings, and with error feedback this rank's tensors.

        Every rank saves and loads its own where error feedback is on; otherwise all have the same.
        """
        return {"version": STATE_VERSION, "wire": self._wire, "world_size": self._world_size, **self._state.memory()}

    def __reduce__(self) -> NoReturn:
        raise TypeError("HookHandle: it belongs to one reducer and cannot be pickled or copied; save its state_dict() instead")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the totals, the wire scale, the plan and the error feedback of the run that wrote `state`.

        With another world size only the totals and the wire scale are taken over.

        Raises:
            GpuallocError: `state` is of a newer gpualloc, of another wire format, or not a hook's state.
        """
        version = state.get("version")
        if not isinstance(version, int) or version > STATE_VERSION:
            raise GpuallocError(f"hook state: version {version!r}, this gpualloc reads up to {STATE_VERSION}; upgrade gpualloc to resume")
        if state.get("wire") != self._wire:
            raise GpuallocError(
                f"hook state: saved with wire={state.get('wire')!r}, this hook has wire={self._wire!r}; "
                "register the hook with the saved one"
            )
        state = {"saturated_steps": 0, "transfers": state.get("buckets", 0), "world_size": None, **state} if version == 1 else state
        try:
            counted = ("steps", "transfers", "wire_bytes", "nonfinite_steps", "saturated_steps")
            totals = self._totals_type(**{name: int(state[name] or 0) for name in counted})
            scale = state["wire_scale"]
            same_world = state["world_size"] == self._world_size
            self._state.load(
                totals,
                wire_scale=None if scale is None else float(scale),
                plan=[tuple(transfer) for transfer in state["plan"]] if same_world else [],
                buckets=[tuple(bucket) for bucket in state["buckets"]] if same_world else [],
                feedback=list(state["feedback"]) if same_world else [],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise GpuallocError(f"hook state: {error!r} in {sorted(state)}; pass what state_dict() returned") from error


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups
