"""The manager's answer: add GPUs or not, which first step, what it costs and saves, how sure. Figures in, a record out; no words yet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpualloc.findings import Efficiency, Gain, Threshold
from gpualloc.findings.rows import setting, usable_rows
from gpualloc.records import BenchCase, Measurement
from gpualloc.report.inputs import Study

Verdict = Literal["yes", "no", "depends", "unsure", "unknown"]
Sureness = Literal["certain", "noisy", "modelled", "slices", "cpu", "open"]

MIN_GAIN = 1.03  # a first step that gains less is not worth its own sentence
NOISY_SPREAD = 0.05  # as in the tables: repeats further apart than this are called noisy
RESULT_SAMPLES = 1_000_000  # a "result" whose cost is told: a million images, or tokens, trained


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The best way found to train one workload on several GPUs, with all numbers of them."""

    points: tuple[Efficiency, ...]  # fewest GPUs first; they differ in the number of ranks alone

    @property
    def last(self) -> Efficiency:
        return self.points[-1]

    @property
    def pays_on(self) -> Efficiency | None:
        """On the most GPUs that pay."""
        return next((point for point in reversed(self.points) if point.verdict == "pays"), None)


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """The change that gains most on the hardware that is there."""

    question: str  # "precision", "hook", "pin_memory", ...
    base: str
    changed: str
    low: float  # smallest and largest speed-up seen
    high: float
    num_comparisons: int
    num_faster: int
    world_size: int | None  # None: on one GPU as on several


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train a workload, and what a result takes."""

    case: BenchCase
    per_s: float  # tokens of language models, images else
    low_per_s: float  # by the slowest and the fastest repeat
    high_per_s: float

    @property
    def is_tokens(self) -> bool:
        return self.case.workload == "llm"

    @property
    def result_time_s(self) -> float:
        """For a million images or tokens."""
        return RESULT_SAMPLES / self.per_s

    @property
    def result_gpu_hours(self) -> float:
        return self.result_time_s / 3600 * gpus_used(self.case)


@dataclass(frozen=True, kw_only=True)
class Answer:
    verdict: Verdict
    scalings: tuple[Scaling, ...]  # one for each workload that was measured on several GPUs
    thresholds: tuple[Threshold, ...]  # from which size on they pay: the best setting of each model
    first_step: FirstStep | None
    start: Setting | None  # the plain way of training on one GPU
    goal: Setting | None  # the best that pays
    sureness: Sureness
    spread: float | None  # largest spread of repeats behind the answer


def gpus_used(case: BenchCase) -> float:
    """GPUs that a case occupies: a slice is its share of one."""
    return case.world_size / case.ranks_per_gpu


def find_answer(study: Study) -> Answer:
    """What one machine's measurements say."""
    scalings = best_scalings(study)
    verdict = _verdict([scaling.points for scaling in scalings])
    workload = _headline_workload(study, scalings)
    start, goal = _start_and_goal(study, workload, scalings)
    told = {point.case for scaling in scalings for point in scaling.points}
    behind = [row for row in study.usable if row.case in told]
    rows = behind or study.usable
    return Answer(
        verdict=verdict,
        scalings=scalings,
        thresholds=_thresholds(study, scalings),
        first_step=_first_step(study),
        start=start,
        goal=goal,
        sureness=_sureness(verdict, rows, scalings),
        spread=max((row.spread for row in rows if row.spread is not None), default=None),
    )


def workload_key(case: BenchCase) -> tuple[object, ...]:
    """What is trained, however it is trained."""
    return case.model, case.image_size_px, case.sequence_length, case.data, case.tuning, case.device, case.ranks_per_gpu, case.cluster()


def best_scalings(study: Study) -> tuple[Scaling, ...]:
    """For each workload the setting that trains fastest on the most GPUs it was measured on."""
    rate_of = {row.case: _rate(row) for row in study.usable}
    by_workload: dict[tuple[object, ...], dict[tuple[object, ...], list[Efficiency]]] = {}
    for each in study.efficiencies:
        fields = tuple(item for item in setting(each.case).items() if item[0] != "world_size")
        by_workload.setdefault(workload_key(each.case), {}).setdefault(fields, []).append(each)
    found = []
    for by_setting in by_workload.values():
        most = max(each.case.world_size for points in by_setting.values() for each in points)
        whole = [points for points in by_setting.values() if points[-1].case.world_size == most]
        best = max(whole, key=lambda points: rate_of.get(points[-1].case, 0.0))
        found.append(Scaling(points=tuple(sorted(best, key=lambda each: each.case.world_size))))
    return tuple(found)


def _verdict(series: Sequence[Sequence[Efficiency]]) -> Verdict:
    if not series:
        return "unknown"
    kinds = {_kind(points) for points in series}
    if kinds == {"pays"}:
        return "yes"
    if kinds == {"does not pay"}:
        return "no"
    return "depends" if "pays" in kinds and "does not pay" in kinds else "unsure"


def _kind(points: Sequence[Efficiency]) -> str:
    verdicts = {point.verdict for point in points}
    return next((kind for kind in ("pays", "too close to call", "not certain") if kind in verdicts), "does not pay")


def _thresholds(study: Study, scalings: Sequence[Scaling]) -> tuple[Threshold, ...]:
    """Of the settings that are best at the largest size, on the most GPUs."""
    best = {scaling.last.case for scaling in scalings}
    matching = [each for each in study.findings.thresholds if each.case in best and each.axis != "per_device_batch_size"]
    by_model: dict[str, Threshold] = {}
    for each in matching:
        held = by_model.get(each.case.model)
        if held is None or each.largest > held.largest:
            by_model[each.case.model] = each
    return tuple(by_model.values())


def _first_step(study: Study) -> FirstStep | None:
    gains = [
        *(gain for gain in study.findings.precision_gains if gain.base == "fp32"),
        *study.findings.detail_gains,
        *(gain for gain in study.how_gains if gain.question == "hook"),
    ]
    groups: dict[tuple[str, str, str], list[Gain]] = {}
    for gain in gains:
        groups.setdefault((gain.question, gain.base, gain.changed), []).append(gain)
    best: tuple[float, FirstStep] | None = None
    for (question, base, changed), group in groups.items():
        num_faster = sum(gain.verdict == "faster" for gain in group)
        mean = statistics.geometric_mean([gain.speedup.value for gain in group])
        if num_faster * 2 <= len(group) or mean < MIN_GAIN or (best is not None and mean <= best[0]):
            continue
        sizes = {gain.case.world_size for gain in group}
        step = FirstStep(
            question=question,
            base=base,
            changed=changed,
            low=min(gain.speedup.value for gain in group),
            high=max(gain.speedup.value for gain in group),
            num_comparisons=len(group),
            num_faster=num_faster,
            world_size=next(iter(sizes)) if len(sizes) == 1 and question == "hook" else None,
        )
        best = mean, step
    return None if best is None else best[1]


def _headline_workload(study: Study, scalings: Sequence[Scaling]) -> tuple[object, ...] | None:
    """The one whose cost is told: the largest that pays, else the largest measured."""
    paying = [scaling.last.case for scaling in scalings if scaling.pays_on is not None]
    cases = paying or [scaling.last.case for scaling in scalings] or [row.case for row in study.usable]
    if not cases:
        return None
    first_model = cases[0].model
    return workload_key(
        max((case for case in cases if case.model == first_model), key=lambda case: case.image_size_px or case.sequence_length or 0)
    )


def settings_of(study: Study, workload: tuple[object, ...]) -> list[Setting]:
    """All ways in which a workload was measured."""
    return [_setting(row) for row in study.usable if workload_key(row.case) == workload and _is_sound(row)]


def _start_and_goal(
    study: Study, workload: tuple[object, ...] | None, scalings: Sequence[Scaling]
) -> tuple[Setting | None, Setting | None]:
    if workload is None:
        return None, None
    ways = settings_of(study, workload)
    alone = [way for way in ways if way.case.world_size == 1]
    plain = [way for way in alone if way.case.strategy == "single" and not way.case.details()] or alone
    if not plain:
        return None, None
    start = next((way for name in ("fp32", "tf32") for way in plain if way.case.precision == name), plain[0])
    scaling = next((each for each in scalings if workload_key(each.last.case) == workload), None)
    num_ranks = scaling.pays_on.case.world_size if scaling is not None and scaling.pays_on is not None else 1
    candidates = [way for way in ways if way.case.world_size == num_ranks]
    return start, max(candidates, key=lambda way: way.per_s, default=start)


def _sureness(verdict: Verdict, rows: Sequence[Measurement], scalings: Sequence[Scaling]) -> Sureness:
    if verdict in ("unsure", "unknown") or not rows:
        return "open"
    if any(row.case.is_rehearsed for row in rows):
        return "modelled"
    if rows[0].case.device == "cpu":
        return "cpu"
    if any(row.case.ranks_per_gpu > 1 for row in rows):
        return "slices"
    noisy = any((row.spread or 0.0) > NOISY_SPREAD for row in rows)
    return "noisy" if noisy else "certain"


def _rate(row: Measurement) -> float:
    return (row.samples_per_s if row.tokens_per_s is None else row.tokens_per_s) or 0.0


def _is_sound(row: Measurement) -> bool:
    losses_are_finite = all(math.isfinite(loss) for loss in (row.loss_start, row.loss_end) if loss is not None)
    return _rate(row) > 0 and losses_are_finite


def _setting(row: Measurement) -> Setting:
    rate, middle = _rate(row), row.step_time_s or 1.0
    slow, fast = row.step_time_high_s or middle, row.step_time_low_s or middle
    return Setting(case=row.case, per_s=rate, low_per_s=rate * middle / slow, high_per_s=rate * middle / fast)


def count_unusable(studies: Sequence[Study]) -> dict[str, int]:
    """Why measurements do not count -> how many, over all machines."""
    counts: dict[str, int] = {}
    for study in studies:
        for reason, number in usable_rows(study.measurements)[1].items():
            counts[reason] = counts.get(reason, 0) + number
    return counts
