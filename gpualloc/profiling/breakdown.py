"""Where the traced steps went, with HTA's definitions on unions of intervals.

Holistic Trace Analysis (hta.readthedocs.io, 2024-01, "Temporal Breakdown" and "Communication Computation Overlap") sorts the device's time
into computing, communication, memory events and idle; communication counts as hidden while something is computed. Here idle time is further
split by what the host does meanwhile, and every moment goes to the first of these that holds:

    GPU   computing, communication, copies from the host, other copies, waiting for input, launch gap
    CPU   waiting for input, computing, communication, launch gap
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpualloc.errors import GpuallocError
from gpualloc.profiling.intervals import EMPTY, Intervals, common, joined, length, union, without
from gpualloc.profiling.records import StepTimes
from gpualloc.profiling.trace import Event, Trace, is_communication, is_host_to_device

# Names of cuBLAS, CUTLASS, cuDNN, Triton and attention kernels, and of the operators of a CPU.
_MATMUL_KERNEL = re.compile(
    r"gemm|gemv|cutlass|xmma|wgrad|dgrad|fprop|conv(?!ert)|winograd|flash_|fmha|attention|nvjet|_mm_|matmul", re.IGNORECASE
)
_MATMUL_OP = re.compile(r"aten::(_?(b?add)?b?mm|_scaled_mm|(mkldnn|thnn|slow|_slow|mkldnn_)?_?conv\w*|_scaled_dot_product\w*|mkldnn\w*)$")
# Ranges that are recorded as operators and only contain or await others.
_NO_WORK = ("c10d::", "_c10d_functional::", "autograd::", "torch::autograd", "torch::distributed", "torch.distributed")


@dataclass(frozen=True)
class Breakdown:
    """Per step."""

    times: StepTimes
    busy: float | None  # share of the window with any kernel or copy on the GPU; None on a CPU


def break_down(trace: Trace, *, device: str, op_overhead_us: float = 0.0) -> Breakdown:
    """The parts of a step, as means over the steps between the first and the last step mark.

    Args:
        trace: with a mark where the first step begins and where each step ends; the device is synchronised at the first and the last.
        device: "cuda" or "cpu".
        op_overhead_us: what a CPU operator takes on one element while recorded: so much of each is dispatch, not work.

    Raises:
        GpuallocError: the trace has fewer than two marks.
    """
    marks = trace.step_marks()
    if len(marks) < 2:
        raise GpuallocError(f"the trace has {len(marks)} step marks and at least 2 are needed; record at least one whole step")
    window = union([(marks[0].end_us, marks[-1].start_us)])
    num_steps = len(marks) - 1
    return _on_gpu(trace, window, num_steps) if device == "cuda" else _on_cpu(trace, window, num_steps, op_overhead_us)


def _on_gpu(trace: Trace, window: Intervals, num_steps: int) -> Breakdown:
    def inside(events: Iterable[Event]) -> Intervals:
        return common(union(event.pair for event in events), window)

    computing = [kernel for kernel in trace.kernels if not is_communication(kernel)]
    optimizer_launches = _launches_inside(trace.launches, trace.optimizer_ranges())
    compute = inside(computing)
    others = inside(kernel for kernel in computing if kernel.correlation not in optimizer_launches)
    matmuls = inside(kernel for kernel in computing if _MATMUL_KERNEL.search(kernel.name))
    comm = inside(filter(is_communication, trace.kernels))
    from_host = inside(filter(is_host_to_device, trace.copies))
    copies = inside(trace.copies)
    busy = joined(compute, comm, copies)
    idle = without(window, busy)
    waiting = common(idle, union(event.pair for event in trace.input_ranges()))
    sent = without(from_host, joined(compute, comm))
    start_us, end_us = float(window[0, 0]), float(window[0, 1])
    times = _per_step(
        num_steps,
        input_wait=waiting,
        host_to_device=sent,
        kernels=others,
        optimizer=without(compute, others),
        exposed_comm=without(comm, compute),
        hidden_comm=common(comm, compute),
        other_memory=without(copies, joined(compute, comm, from_host)),
        launch_gap=without(idle, waiting),
        matmul=matmuls,
        num_launches=sum(start_us <= kernel.start_us < end_us for kernel in trace.kernels),
        num_synchronisations=sum(start_us <= call.start_us < end_us for call in trace.synchronisations()),
    )
    return Breakdown(times, length(busy) / length(window))


def _on_cpu(trace: Trace, window: Intervals, num_steps: int, op_overhead_us: float) -> Breakdown:
    waiting = common(union(event.pair for event in trace.input_ranges()), window)
    work = [piece for op in _self_times(trace.ops) if _does_work(op.event) for piece in op.work(op_overhead_us)]
    compute = without(common(union(pair for _, pair in work), window), waiting)
    matmuls = common(union(pair for event, pair in work if _MATMUL_OP.match(event.name)), compute)
    optimizer = common(compute, union(event.pair for event in trace.optimizer_ranges()))
    # Dispatch inside an operator hides communication as its work does: a faster wire would not shorten it.
    covering = joined(common(union(op.pair for op in trace.ops if _does_work(op)), window), waiting)
    comm = common(union(event.pair for event in trace.host_collectives()), window)
    exposed = without(comm, covering)
    start_us, end_us = float(window[0, 0]), float(window[0, 1])
    times = _per_step(
        num_steps,
        input_wait=waiting,
        host_to_device=EMPTY,
        kernels=without(compute, optimizer),
        optimizer=optimizer,
        exposed_comm=exposed,
        hidden_comm=without(comm, exposed),
        other_memory=EMPTY,
        launch_gap=without(window, joined(waiting, compute, exposed)),
        matmul=matmuls,
        num_launches=sum(start_us <= op.start_us < end_us and _does_work(op) for op in trace.ops),
        num_synchronisations=0,
    )
    return Breakdown(times, None)


def _per_step(num_steps: int, *, num_launches: float, num_synchronisations: float, **parts: Intervals) -> StepTimes:
    return StepTimes(
        **{f"{name}_s": length(part) * 1e-6 / num_steps for name, part in parts.items()},
        num_launches=num_launches / num_steps,
        num_synchronisations=num_synchronisations / num_steps,
    )


def _launches_inside(launches: Sequence[Event], ranges: Sequence[Event]) -> set[int]:
    """Correlations of the calls that begin inside one of the ranges, on its thread."""
    found: set[int] = set()
    for thread in {each.thread for each in ranges}:
        spans = union(each.pair for each in ranges if each.thread == thread)
        starts = spans[:, 0].tolist()
        for launch in launches:
            index = bisect.bisect_right(starts, launch.start_us) - 1
            is_inside = launch.thread == thread and index >= 0 and launch.start_us < spans[index, 1]
            if is_inside and launch.correlation is not None:
                found.add(launch.correlation)
    return found


@dataclass
class _SelfTime:
    """An operator and the pieces of it in which no other operator inside it runs."""

    event: Event
    pieces: list[tuple[float, float]] = field(default_factory=list)
    num_children: int = 0
    covered_until_us: float = 0.0

    def work(self, op_overhead_us: float) -> list[tuple[Event, tuple[float, float]]]:
        """The pieces less what the operator and its calls of others take on one element; [] where that is all."""
        spare_us = op_overhead_us * (1 + self.num_children)
        kept = []
        for start_us, end_us in self.pieces:
            cut_us = min(spare_us, end_us - start_us)
            spare_us -= cut_us
            if end_us - start_us > cut_us:
                kept.append((self.event, (start_us + cut_us, end_us)))
        return kept


def _self_times(ops: Sequence[Event]) -> list[_SelfTime]:
    """Args: ops: sorted by start, the outer one first where two begin together."""
    done: list[_SelfTime] = []
    stacks: dict[str, list[_SelfTime]] = {}

    def close(stack: list[_SelfTime], until_us: float) -> None:
        while stack and stack[-1].event.end_us <= until_us:
            ended = stack.pop()
            ended.pieces.append((ended.covered_until_us, ended.event.end_us))
            if stack:
                stack[-1].covered_until_us = ended.event.end_us
            done.append(ended)

    for event in ops:
        stack = stacks.setdefault(event.thread, [])
        close(stack, event.start_us)
        if stack:
            stack[-1].pieces.append((stack[-1].covered_until_us, event.start_us))
            stack[-1].num_children += 1
        stack.append(_SelfTime(event, covered_until_us=event.start_us))
    for stack in stacks.values():
        close(stack, float("inf"))
    return done


def median_self_time_us(trace: Trace, name: str) -> float | None:
    """Of the operator with this name, without the operators inside it; None where it does not occur."""
    found = sorted(sum(end - start for start, end in op.pieces) for op in _self_times(trace.ops) if op.event.name == name)
    return found[len(found) // 2] if found else None


def _does_work(op: Event) -> bool:
    """Whether it is an operator rather than a range around operators ("AddmmBackward0") or a collective."""
    return ("::" in op.name and not op.name.startswith(_NO_WORK)) or op.name.startswith("## Call")
