"""The order of steps: first batch and precision, then how data and memory are handled, then more GPUs, then the strategy.

What makes one GPU faster helps on every number of them, costs nothing, and changes how much communication can hide; so it comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpualloc.advice.choice import plainness
from gpualloc.advice.commands import bench_command
from gpualloc.advice.evidence import work_key
from gpualloc.advice.learning_rate import learning_rate_rule
from gpualloc.advice.records import Option, Step
from gpualloc.advice.words import interval_text, times_text
from gpualloc.findings import Interval
from gpualloc.findings.labels import device_noun, gain_text
from gpualloc.findings.ratio import speed_ratio
from gpualloc.findings.rows import setting
from gpualloc.records import BenchCase, Measurement
from gpualloc.strategies import global_batch_size
from gpualloc.workloads.support import default_optimizer

_DETAILS = ("pin_memory", "channels_last", "num_workers", "non_blocking", "compile", "grad_accum_steps", "activation_checkpointing")
_RATE_OF_PRECISION = "keep the learning rate; check the result with gpualloc bench --quality"


def start_row(rows: Sequence[Measurement]) -> Measurement | None:
    """The plainest single process: what a script does before anything is tuned."""
    alone = [row for row in rows if row.case.world_size == 1 and row.case.strategy == "single"]
    return min(alone, key=lambda row: plainness(row.case), default=None)


def order_of_steps(rows: Sequence[Measurement], chosen: Option, *, is_strong: bool) -> tuple[Step, ...]:
    """The way from the start to the chosen option, with what each step gains where that was measured.

    Args:
        rows: of one size.
    """
    start = start_row(rows)
    if start is None:
        return ()
    current, steps = start, []
    for name in ("per_device_batch_size", "precision", *_DETAILS):
        if name == "per_device_batch_size" and is_strong:
            continue  # the global batch decides
        step, current = _step_of_field(name, current, chosen, rows)
        if step is not None:
            steps.append(step)
    return (*steps, _more_gpus(chosen, is_strong), *_strategy(chosen, rows))


def _step_of_field(name: str, current: Measurement, chosen: Option, rows: Sequence[Measurement]) -> tuple[Step | None, Measurement]:
    """(the step, the row it leads to); None where the field is neither measured nor worth measuring."""
    now, target = setting(current.case)[name], setting(chosen.case)[name]
    others = [row for row in rows if row is not current and _differs_only_in(row.case, current.case, name)]
    if now != target:
        row = next((row for row in others if setting(row.case)[name] == target), None)
        gain = None if row is None else _gain(row, current)
        reason = f"not measured alone on one {device_noun(current.case)}" if gain is None else _gain_words(gain)
        if name == "precision":
            reason += f"; {_RATE_OF_PRECISION}"
        rule = _rule(current.case, row.case) if name in ("per_device_batch_size", "grad_accum_steps") and row is not None else None
        step = Step(
            name=_label(name),
            decision="do",
            change=f"{_text(name, now)} -> {_text(name, target)}",
            gain=gain,
            reason=reason,
            rule=rule,
            command=None
            if gain is not None
            else bench_command(current.case, changes=f"{_option(name)} {_text(name, now)},{_text(name, target)}"),
        )
        return step, row or current
    if others:
        best = max(others, key=lambda row: _gain(row, current).value)
        gain = _gain(best, current)
        if gain.is_above(1) and chosen.num_gpus > 1:
            value = _text(name, setting(best.case)[name])
            reason = f"{value} is {_gain_words(gain)} on one {device_noun(best.case)} and was not measured on {chosen.num_gpus}"
            command = bench_command(chosen.case, changes=f"{_option(name)} {value}")
            return Step(name=_label(name), decision="measure", change=_text(name, now), gain=gain, reason=reason, command=command), current
        values = ", ".join(_text(name, setting(row.case)[name]) for row in others)
        reason = f"also measured: {values}; the best, {_text(name, setting(best.case)[name])}, is {_gain_words(gain)}"
        return Step(name=_label(name), decision="leave", change=_text(name, now), gain=gain, reason=reason), current
    changes = _worth_measuring(name, current.case)
    if changes is None:
        return None, current
    command = bench_command(current.case, changes=changes)
    return Step(
        name=_label(name), decision="measure", change=_text(name, now), gain=None, reason="no other was measured", command=command
    ), current


def _more_gpus(chosen: Option, is_strong: bool) -> Step:
    case = chosen.case
    if chosen.num_gpus == 1:
        return Step(name="more GPUs", decision="leave", change="1", gain=None, reason=chosen.why)
    one_gpu_batch = case.per_device_batch_size * case.grad_accum_steps
    rule = learning_rate_rule(_optimizer(case), from_batch_size=one_gpu_batch, to_batch_size=chosen.global_batch_size)
    return Step(
        name="more GPUs",
        decision="do",
        change=f"1 -> {chosen.num_gpus}",
        gain=chosen.speedup,
        reason=f"{interval_text(chosen.speedup, times_text)} the speed of one, {chosen.source}; {chosen.why}",
        rule=None if is_strong else rule,
    )


def _strategy(chosen: Option, rows: Sequence[Measurement]) -> list[Step]:
    """Other strategies and hooks on as many GPUs."""
    if chosen.num_gpus == 1:
        return []
    case = chosen.case
    key = work_key(case, without=("strategy", "hook"))
    same = [row for row in rows if row.case.world_size == case.world_size and work_key(row.case, without=("strategy", "hook")) == key]
    mine = next((row for row in same if (row.case.strategy, row.case.hook) == (case.strategy, case.hook)), None)
    others = [row for row in same if row is not mine]
    name = _how(case)
    if mine is None or not others:
        command = bench_command(case, changes="--hook none,gpualloc_auto") if case.strategy == "ddp" else None
        return [Step(name="strategy", decision="measure", change=name, gain=None, reason="no other was measured", command=command)]
    plain = next((row for row in others if (row.case.strategy, row.case.hook) == ("ddp", "none")), None)
    if plain is not None:
        gain = _gain(mine, plain)
        return [Step(name="strategy", decision="do", change=f"{_how(plain.case)} -> {name}", gain=gain, reason=_gain_words(gain))]
    best = max(others, key=lambda row: _gain(row, mine).value)
    gain = _gain(best, mine)
    reason = f"also measured: {', '.join(_how(row.case) for row in others)}; the best, {_how(best.case)}, is {_gain_words(gain)}"
    return [Step(name="strategy", decision="leave", change=name, gain=gain, reason=reason)]


def _gain(changed: Measurement, base: Measurement) -> Interval:
    work = global_batch_size(changed.case) / global_batch_size(base.case)
    return speed_ratio([base.repeat_step_times_s], [changed.repeat_step_times_s], factor=work)


def _gain_words(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return f"{gain_text(gain.value)} (a single repeat: not certain)"
    verdict = "" if gain.low > 1 or gain.high < 1 else " (no difference seen)"
    return f"{gain_text(gain.value)} [{gain_text(gain.low)}, {gain_text(gain.high)}]{verdict}"


def _differs_only_in(case: BenchCase, other: BenchCase, name: str) -> bool:
    return (
        case.world_size == 1
        and case.strategy == "single"
        and work_key(case, without=(name,)) == work_key(other, without=(name,))
        and setting(case)[name] != setting(other)[name]
    )


def _worth_measuring(name: str, case: BenchCase) -> str | None:
    """Options that would measure what a field does, where it can do something."""
    on_gpu = case.device == "cuda"
    if name == "per_device_batch_size":
        return f"--batch-size {case.per_device_batch_size},{2 * case.per_device_batch_size},{4 * case.per_device_batch_size}"
    if name == "precision" and case.precision in ("fp32", "fp64"):
        return f"--precision {case.precision},bf16"
    if name == "pin_memory" and on_gpu:
        return "--pin-memory on,off"
    if name == "channels_last" and case.workload == "image" and case.precision in ("fp16", "bf16", "tf32"):
        return "--channels-last on,off"
    if name == "num_workers" and case.data != "synthetic":
        return "--num-workers 2,4,8"
    return None


def _rule(before: BenchCase, after: BenchCase) -> Any:
    return learning_rate_rule(_optimizer(after), from_batch_size=global_batch_size(before), to_batch_size=global_batch_size(after))


def _optimizer(case: BenchCase) -> str:
    return case.optimizer or default_optimizer(case.workload)


def _how(case: BenchCase) -> str:
    return f"{case.strategy}/{case.hook}" if case.strategy == "ddp" else case.strategy


def _label(name: str) -> str:
    return {"per_device_batch_size": "batch size"}.get(name, name)


def _option(name: str) -> str:
    return {"per_device_batch_size": "--batch-size", "grad_accum_steps": "--grad-accum"}.get(name, f"--{name.replace('_', '-')}")


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else str(value)
