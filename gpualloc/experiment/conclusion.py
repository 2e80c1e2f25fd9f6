"""What a study found, with its evidence: a record, and the same as Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gpualloc.advice.records import Crossing
from gpualloc.advice.series import crossings
from gpualloc.advice.words import crossing_text, interval_text, percent_text
from gpualloc.experiment.plan import Question, efficiency_at, fastest_precision, verdict_of
from gpualloc.experiment.run import Progress
from gpualloc.findings import Interval
from gpualloc.findings.labels import UNITS, count_text, device_noun, gain_text, parts
from gpualloc.findings.ratio import speed_ratio
from gpualloc.records import BenchCase, Environment, Measurement


@dataclass(frozen=True, kw_only=True)
class Point:
    """One size: both cases and what they say together."""

    size: int
    precision: str
    one: Measurement
    many: Measurement
    efficiency: Interval
    verdict: str


@dataclass(frozen=True, kw_only=True)
class RunStep:
    """A step that was run."""

    why: str
    cases: tuple[str, ...]
    rounds: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The answer to a question, and what it rests on."""

    question: str
    answer: str
    is_certain: bool
    stopped_because: str
    precision: str | None
    precision_gain: str | None  # how it was chosen
    crossing: Crossing | None
    points: tuple[Point, ...]
    failures: tuple[str, ...]
    steps: tuple[RunStep, ...]
    num_possible_cases: int  # of the whole grid
    num_cases: int  # that were run
    environment: Environment
    command: str
    run_id: int

    @property
    def measurements(self) -> list[Measurement]:
        """What it rests on: of each point that of one GPU, then that of several."""
        return [row for point in self.points for row in (point.one, point.many)]


def conclude(question: Question, progress: Progress, *, environment: Environment, command: str, run_id: int) -> Conclusion:
    """The conclusion of what was run, however far it came."""
    done = progress.done
    precision = fastest_precision(question, progress.measured)
    points = () if precision is None else _points(question, progress, precision)
    along_sizes = [(point.many.case, point.efficiency, "rehearsed" if point.many.case.is_rehearsed else "measured") for point in points]
    found = [each for each in crossings(along_sizes, min_efficiency=question.min_efficiency) if each.axis == question.axis]  # type: ignore[arg-type]
    crossing = found[0] if found else None
    return Conclusion(
        question=question_text(question),
        answer=_answer_text(question, points, crossing),
        is_certain=done is not None and done.is_certain,
        stopped_because="it was interrupted" if done is None else done.why,
        precision=precision,
        precision_gain=_precision_text(question, progress, precision),
        crossing=crossing,
        points=points,
        failures=tuple(filter(None, map(_failure, progress.measured.values()))),
        steps=tuple(
            RunStep(why=step.why, cases=tuple(cell.case.label() for cell in step.cells), rounds=step.rounds, seconds=seconds)
            for step, seconds in progress.steps
        ),
        num_possible_cases=len(question.cells),
        num_cases=len(progress.measured),
        environment=environment,
        command=command,
        run_id=run_id,
    )


def conclusion_json(conclusion: Conclusion) -> dict[str, Any]:
    """Everything, measurements included."""
    return asdict(conclusion)


def conclusion_markdown(conclusion: Conclusion) -> str:
    """The answer first, then the evidence and how it was gathered."""
    environment = conclusion.environment
    device = f"{environment.num_devices} x {environment.device_name}" if environment.cuda_version else environment.device_name
    lines = [
        f"# {_escaped(conclusion.question)}",
        "",
        f"**{_escaped(conclusion.answer)}**",
        "",
        f"{'Certain' if conclusion.is_certain else 'Not certain'}: {_escaped(conclusion.stopped_because)}.",
    ]
    if conclusion.precision_gain is not None:
        lines += ["", _escaped(conclusion.precision_gain)]
    if conclusion.points:
        unit = UNITS[conclusion.crossing.axis] if conclusion.crossing is not None else "size"
        lines += [
            "",
            "## Evidence",
            "",
            f"| {unit} | one, ms a step | several, ms a step | efficiency | rounds | |",
            "|---|---|---|---|---|---|",
        ]
        for point in conclusion.points:
            cells = (
                f"{point.size}",
                _milliseconds(point.one),
                _milliseconds(point.many),
                interval_text(point.efficiency, percent_text),
                str(point.many.num_rounds),
                point.verdict,
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines += [
            "",
            "In brackets: 95 % intervals from the repeats. Efficiency: throughput over that of as many single processes (weak scaling).",
        ]
    if conclusion.failures:
        lines += ["", "## Not measured", "", *(f"- {_escaped(failure)}" for failure in conclusion.failures)]
    lines += ["", "## How it was found", ""]
    for number, step in enumerate(conclusion.steps, start=1):
        rounds = "" if step.rounds == 1 else f", round {step.rounds}"
        lines.append(f"{number}. {_escaped(step.why)}: {len(step.cases)} cases{rounds}, {step.seconds:.0f} s")
    lines += [
        "",
        f"{conclusion.num_cases} of {conclusion.num_possible_cases} cases were run; efficiency is taken to grow with the size.",
        "",
        f"- {_escaped(device)}, torch {environment.torch_version}, gpualloc {environment.gpualloc_version}",
        f"- `{conclusion.command.replace('`', '')}`",
        f"- every figure: `gpualloc results show {conclusion.run_id}`; time and cost: `gpualloc advise --run {conclusion.run_id}`",
    ]
    if not environment.cuda_version:
        lines.append("- CPU, not comparable with a GPU")
    return "\n".join(lines) + "\n"


def _points(question: Question, progress: Progress, precision: str) -> tuple[Point, ...]:
    points = []
    for size in question.sizes:
        efficiency = efficiency_at(question, size, precision, list(progress.measured.values()))
        if efficiency is not None:
            one, many = (progress.measured[question.cell(size, precision, is_single=alone).case.key()] for alone in (True, False))
            verdict = {"pays": "pays", "fails": "does not pay", "unclear": "too close to call"}[
                verdict_of(efficiency, question.min_efficiency)
            ]
            points.append(Point(size=size, precision=precision, one=one, many=many, efficiency=efficiency, verdict=verdict))
    return tuple(points)


def _who(question: Question) -> tuple[BenchCase, str]:
    case = next(cell.case for cell in question.cells if cell.case.strategy != "single")
    return case, f"{count_text(case.world_size)} {'rehearsed ' if case.is_rehearsed else ''}{device_noun(case)}"


def question_text(question: Question) -> str:
    case, who = _who(question)
    bar = f"{question.min_efficiency:.0%} efficiency"
    where = _at(question, question.sizes[0])
    if len(question.sizes) > 1:
        where = f"from which of {', '.join(map(str, question.sizes))} {UNITS[question.axis]} on"
    return f"Do {who} keep {bar} training {case.model}, {where}?"


def _answer_text(question: Question, points: tuple[Point, ...], crossing: Crossing | None) -> str:
    if not points:
        return "No answer: nothing was measured on one and on several."
    if crossing is not None:
        text = crossing_text(crossing)
        return text[0].upper() + text[1:] + "."
    _, who = _who(question)
    point = points[0]
    reach = f"{interval_text(point.efficiency, percent_text)} efficiency {_at(question, point.size)}"
    bar = f"{question.min_efficiency:.0%} was asked for"
    if point.verdict == "too close to call":
        return f"Too close to call: {who} reach {reach}, and {bar}."
    return f"{'Yes' if point.verdict == 'pays' else 'No'}: {who} reach {reach}, and {bar}."


def _at(question: Question, size: int) -> str:
    case, _ = _who(question)
    batch = f"at batch {case.per_device_batch_size}"
    return (
        f"at {parts(case)['size']}, batch {size}"
        if question.axis == "per_device_batch_size"
        else f"at {size} {UNITS[question.axis]}, {batch}"
    )


def _precision_text(question: Question, progress: Progress, precision: str | None) -> str | None:
    if len(question.precisions) == 1 or precision is None:
        return None
    chosen = progress.measured[question.cell(question.sizes[-1], precision, is_single=True).case.key()]
    gains = []
    for other in question.precisions:
        row = progress.measured.get(question.cell(question.sizes[-1], other, is_single=True).case.key())
        if other != precision and row is not None and row.status == "ok":
            gain = speed_ratio([row.repeat_step_times_s], [chosen.repeat_step_times_s])
            gains.append(f"{interval_text(gain, gain_text)} over {other}")
    return f"In {precision}, the choice on one: {', '.join(gains)}." if gains else None


def _failure(row: Measurement) -> str | None:
    """Why a case has no figures that count; None: it has."""
    if row.status != "ok":
        return f"{row.case.label()}: {row.status}: {row.reason}"
    return f"{row.case.label()}: disturbed: {row.disturbances[0]}" if row.disturbances else None


def _milliseconds(row: Measurement) -> str:
    return "-" if row.step_time_s is None else f"{row.step_time_s * 1e3:.2f}"


def _escaped(text: str) -> str:
    """For a line of Markdown."""
    return "".join(f"\\{char}" if char in "\\`*|<>#" else char for char in " ".join(text.splitlines()))
