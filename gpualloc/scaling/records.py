"""What the scaling model takes and gives: rows, queries, forecasts, suggestions."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

_MOST_PARSED = 4096  # placements kept: clusters have hundreds
Kind = Literal["interpolates", "extrapolates", "refused"]
BOUND_BY_INPUT = "bound by input"  # so begins the basis of a forecast step that waits for its loaders
Source = Literal["measured", "rehearsed"]


@dataclass(frozen=True, kw_only=True)
class StepQuery:
    """A training step whose time is asked for. Scaling is weak: the batch is that of one GPU."""

    cluster: str
    model: str
    num_nodes: int
    num_gpus: int
    placement: str | None  # GPUs on each node, "44" or "10+6"; None where only the totals are known
    per_device_batch_size: int
    image_size_px: int | None = None
    sequence_length: int | None = None
    precision: str | None = None
    gradient_bytes: float | None = None  # that a step averages over the ranks
    input_samples_per_s: float | None = None  # that the loaders of one node deliver to all of its GPUs where nothing else is waited for

    def node_counts(self) -> tuple[int, ...] | None:
        """GPUs on each node; None where the placement is unknown or does not add up to num_gpus on num_nodes."""
        return _node_counts(self.placement, self.num_nodes, self.num_gpus) if self.placement else None

    def fullest_node(self) -> int:
        """GPUs of the node that has most of them; the ceiling of the average where the placement is unknown."""
        counts = self.node_counts()
        return max(counts) if counts else -(-self.num_gpus // self.num_nodes)

    def size(self) -> float:
        """Pixels of an image or tokens of a sequence; 1 where neither is given."""
        return float(self.image_size_px**2 if self.image_size_px else self.sequence_length or 1)

    def label(self) -> str:
        """Such as "bert on 4 GPUs of 2 nodes (22) at batch 8, fp16"."""
        nodes = "1 node" if self.num_nodes == 1 else f"{self.num_nodes} nodes"
        gpus = "1 GPU" if self.num_gpus == 1 else f"{self.num_gpus} GPUs of {nodes}"
        placed = f" ({self.placement})" if self.placement and self.num_nodes > 1 else ""
        size = f", {self.image_size_px} px" if self.image_size_px else f", {self.sequence_length} tokens" if self.sequence_length else ""
        return (
            f"{self.model} on {gpus}{placed} at batch {self.per_device_batch_size}{size}{f', {self.precision}' if self.precision else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class StepRow(StepQuery):
    """A step that was measured, or rehearsed on modelled links."""

    step_time_s: float  # mean or median of whole steps
    sync_time_s: float | None  # the exposed wait for gradients inside it
    source: Source = "measured"


@dataclass(frozen=True, kw_only=True)
class StepTerms:
    """The terms of a forecast step: all but `comm_s` and `hidden_comm_s` add up to its `step_time_s`."""

    launch_floor_s: float  # what a step takes however small its batch: kernel launches and the optimiser
    arithmetic_s: float
    contention_s: float  # more than on one GPU without links: GPUs share a node's cores, memory and buses; negative where it is less
    comm_s: float  # what communication takes, hidden or not
    hidden_comm_s: float  # of it, behind computing
    exposed_comm_s: float  # of it, waited for
    input_wait_s: float  # for the loaders, beyond everything else
    correction_s: float  # what measured steps depart from these terms

    @property
    def is_input_bound(self) -> bool:
        """Whether loading takes longer than everything else, which makes a step at least 4 % longer."""
        return self.input_wait_s > 0.04 * (self.step_time_s - self.input_wait_s)

    @property
    def step_time_s(self) -> float:
        """Their sum, without what is hidden."""
        visible = (self.launch_floor_s, self.arithmetic_s, self.contention_s, self.exposed_comm_s, self.input_wait_s, self.correction_s)
        return sum(visible)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The answer to one query. A refusal has no numbers and says in `reason` what is missing and what to measure next."""

    query: StepQuery
    step_time_s: float | None  # median of the forecast
    low_s: float | None  # the step takes between these two with 90 % probability
    high_s: float | None
    kind: Kind
    reason: str | None = None
    basis: tuple[str, ...] = ()  # what the number rests on, in words
    terms: StepTerms | None = None  # what the step is made of


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A measurement that would narrow the forecasts."""

    query: StepQuery
    why: str
    narrowing: float | None  # fraction by which the forecasts' mean log-interval would shrink; None where there is no forecast yet


@functools.lru_cache(maxsize=_MOST_PARSED)
def _node_counts(placement: str, num_nodes: int, num_gpus: int) -> tuple[int, ...] | None:
    words = re.split(r"[+,; ]+", placement.strip())
    digits = words if len(words) > 1 or num_nodes == 1 else list(words[0])
    counts = tuple(int(word) for word in digits if word.isdigit())
    return counts if len(counts) == num_nodes and sum(counts) == num_gpus and min(counts) > 0 else None
