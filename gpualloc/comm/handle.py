"""What `register_comm_hook` returns: the hook's figures, and its state for checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

from gpualloc.errors import GpuallocError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class HookStats:
    """Totals since the hook was registered, or since the run whose state it loaded."""

    wire: str  # "fp32", "fp16" or "bf16"
    native: bool  # whether the compiled hook runs, or its Python stand-in
    steps: int  # synchronised backward passes
    buckets: int  # all-reduces
    wire_bytes: int  # gradient bytes this rank handed to all-reduce
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
    def load(self, totals: Any) -> None: ...


class HookHandle:
    """The registered hook. Valid as long as the DDP model lives."""

    def __init__(self, state: HookState, totals_type: Any, *, wire: str, native: bool) -> None:
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
            nonfinite_steps=totals.nonfinite_steps if self._state.counts_nonfinite else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings to keep in a checkpoint beside the model's."""
        return {"version": STATE_VERSION, **dataclasses.asdict(self.stats())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the totals of the run that wrote `state`.

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
        except (KeyError, TypeError, ValueError) as error:
            raise GpuallocError(f"hook state: {error!r} in {sorted(state)}; pass what state_dict() returned") from error
        self._state.load(self._totals_type(**totals))
