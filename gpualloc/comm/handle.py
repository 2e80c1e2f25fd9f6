"""What `register_comm_hook` returns: the hook's figures, and its state for checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gpualloc.errors import GpuallocError, UsageError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class HookStats:
    """Totals since the hook was registered, or since the run whose state it loaded."""

    wire: str  # "fp32", "fp16" or "bf16"
    native: bool  # whether the compiled hook runs, or its Python stand-in
    steps: int  # synchronised backward passes
    buckets: int  # all-reduces
    wire_bytes: int  # gradient bytes this rank handed to all-reduce
    wire_scale: float  # what the next step's gradients are multiplied with on the wire
    nonfinite_steps: int | None  # steps whose averaged gradient held inf or NaN; None for wire="fp32", which does not look


class HookTotals(Protocol):
    """The counting part of a hook's state: compiled (gpualloc._C.HookTotals) or Python."""

    steps: int
    buckets: int
    wire_bytes: int
    nonfinite_steps: int


class HookState(Protocol):
    """A hook's state: compiled (gpualloc._C.GradientHookState) or Python."""

    counts_nonfinite: bool

    def totals(self) -> HookTotals: ...
    def wire_scale(self) -> float: ...
    def load(self, totals: Any, wire_scale: float) -> None: ...
    def last_nonfinite(self) -> list[Tensor]: ...
    def last_sumsq(self) -> list[Tensor]: ...


class HookHandle:
    """The registered hook. Valid as long as the DDP model lives."""

    def __init__(self, ddp_model: DistributedDataParallel, state: HookState, totals_type: Any, *, wire: str, native: bool) -> None:
        self._parameters = [parameter for parameter in ddp_model.parameters() if parameter.requires_grad]
        self._state = state
        self._totals_type = totals_type
        self._wire = wire
        self._native = native

    def stats(self) -> HookStats:
        """The totals so far. Waits for the device; call it between steps, not in every one."""
        totals = self._state.totals()
        return HookStats(
            wire=self._wire,
            native=self._native,
            steps=totals.steps,
            buckets=totals.buckets,
            wire_bytes=totals.wire_bytes,
            wire_scale=self._state.wire_scale(),
            nonfinite_steps=totals.nonfinite_steps if self._state.counts_nonfinite else None,
        )

    def found_inf(self) -> Tensor:
        """Whether the last step's averaged gradients hold inf or NaN: [1] FP32, 1.0 or 0.0, the same on every rank.

        On the first parameter's device, without waiting for it: what GradScaler and the fused optimizers call `found_inf`.
        Gradients that are not narrowed are looked at here.
        """
        found = torch.zeros(1, device=self._parameters[0].device)
        for count in self._state.last_nonfinite():
            found += count.to(found.device)
        for gradient in self._gradients(narrowed=False):
            found += gradient.isfinite().all().logical_not().to(found.device)
        return found.clamp_(max=1.0)

    def grad_norm(self) -> Tensor:
        """The 2-norm over all averaged gradients of the last step: [] FP32, the same on every rank, without waiting.

        With `sum_squares=True` at registration the gradients that went through 16 bits were summed while they were widened;
        only the others are read again. Divide by the GradScaler's scale where there is one; clip or unscale afterwards.
        """
        device = self._parameters[0].device
        sums = self._state.last_sumsq()
        norms = [sum_.to(device).sqrt() for sum_ in sums]
        norms += [
            torch.linalg.vector_norm(gradient).double().to(device) for gradient in self._gradients(narrowed=None if not sums else False)
        ]
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
        for device, gradients in _by_device(self._gradients(narrowed=None)).items():
            torch._foreach_mul_(gradients, coefficient.to(device))
        return norm

    def _gradients(self, narrowed: bool | None) -> list[Tensor]:
        """The gradients that went through 16 bits, those that did not, or (None) all of them; sparse ones as their values."""
        narrows = self._wire != "fp32"
        found = []
        for gradient in (parameter.grad for parameter in self._parameters):
            if gradient is None:
                continue
            is_narrowed = narrows and gradient.dtype == torch.float32 and not gradient.is_sparse
            if narrowed is None or narrowed == is_narrowed:
                found.append(gradient.coalesce().values() if gradient.is_sparse else gradient)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings to keep in a checkpoint beside the model's."""
        return {"version": STATE_VERSION, **dataclasses.asdict(self.stats())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the totals and the wire scale of the run that wrote `state`.

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
        try:
            totals = {name: int(state[name] or 0) for name in ("steps", "buckets", "wire_bytes", "nonfinite_steps")}
            wire_scale = float(state["wire_scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise GpuallocError(f"hook state: {error!r} in {sorted(state)}; pass what state_dict() returned") from error
        self._state.load(self._totals_type(**totals), wire_scale)


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups
