"""Findings as sentences: question -> its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gpualloc.findings.labels import UNITS, count_text, device_noun, gain_text, parts, ranks_text, split_parts
from gpualloc.findings.records import Best, Findings, Gain, Threshold, Trend


def answers(findings: Findings) -> dict[str, list[str]]:
    """Sentences for each question: "precision", "scaling", "details" and "best"."""
    return {
        "precision": _precision_answers(findings.precision_gains),
        "scaling": _scaling_answers(findings),
        "details": _detail_answers(findings),
        "best": _best_answers(findings.best),
    }


def threshold_text(threshold: Threshold) -> str:
    """ "four GPUs pay from about 300 px (between 200 and 300 px)"."""
    case, unit = threshold.case, UNITS[threshold.axis]
    who = f"{count_text(case.world_size)} {device_noun(case)}"
    unsure = f"{_and_list(threshold.uncertain)} {unit} too close to call" if threshold.uncertain else ""
    if threshold.pays_from is None:
        if threshold.fails_at == threshold.largest:
            return f"{who} do not pay up to {threshold.largest} {unit}, the largest measured"
        if threshold.fails_at is None:
            return f"not certain whether {who} pay up to {threshold.largest} {unit}, the largest measured"
        return f"{who} do not pay up to {threshold.fails_at} {unit}; {unsure}"
    if threshold.pays_from == threshold.smallest:
        return f"{who} pay from {threshold.smallest} {unit} on, the smallest measured"
    if threshold.fails_at is None:
        return f"{who} pay from {threshold.pays_from} {unit} on at the latest; {unsure}"
    about = "" if threshold.estimate is None else f"about {_two_digits(threshold.estimate)} {unit} ("
    between = f"between {threshold.fails_at} and {threshold.pays_from} {unit}"
    return f"{who} pay from {about}{between}{'; ' + unsure if unsure else ''}{')' if about else ''}"


def best_setting_text(best: Best) -> str:
    """The setting alone."""
    words = parts(best.case)
    return ", ".join(filter(None, (words[name] for name in ("precision", "how", "batch", "details"))))


def _precision_answers(gains: Sequence[Gain]) -> list[str]:
    return [
        f"{changed} over {base}{_model(model, gains)}: {_range_text(group)}"
        for (model, base, changed), group in _grouped(gains, lambda gain: (gain.case.model, gain.base, gain.changed)).items()
    ]


def _scaling_answers(findings: Findings) -> list[str]:
    if not findings.thresholds:
        return []
    _, differing = split_parts([parts(threshold.case) for threshold in findings.thresholds], without=("size", "batch", "ranks"))
    sentences = []
    for threshold in findings.thresholds:
        words = parts(threshold.case)
        fixed = "size" if threshold.axis == "per_device_batch_size" else "batch"
        label = ", ".join(filter(None, [*(words[name] for name in differing), words[fixed]]))
        sentences.append(f"{label}: {threshold_text(threshold)}")
    return sentences


def _detail_answers(findings: Findings) -> list[str]:
    sentences = []
    gains = findings.detail_gains
    for (model, name, base, changed), group in _grouped(
        gains, lambda gain: (gain.case.model, gain.question, gain.base, gain.changed)
    ).items():
        by_ranks = _grouped(sorted(group, key=lambda gain: gain.case.world_size), lambda gain: (ranks_text(gain.case),))
        steps = "; ".join(f"on {ranks}, {_range_text(same)}" for (ranks,), same in by_ranks.items())
        trends = [
            trend
            for trend in findings.detail_trends
            if (trend.case.model, trend.question, trend.base, trend.changed) == (model, name, base, changed)
        ]
        sentences.append(f"{name} {changed} instead of {base}{_model(model, gains)}: {steps}{_trend_text(trends)}")
    return sentences


def _best_answers(best: Sequence[Best]) -> list[str]:
    fastest: dict[tuple[str, str], Best] = {}
    for each in best:
        key = (each.case.model, parts(each.case)["size"])
        if key not in fastest or each.samples_per_s > fastest[key].samples_per_s:
            fastest[key] = each
    sizes: dict[tuple[str, str], list[str]] = {}
    for (model, size), each in fastest.items():
        sizes.setdefault((model, f"{best_setting_text(each)}, on {ranks_text(each.case)}"), []).append(size)
    return [f"{model}, {_and_list(same)}: {text}" for (model, text), same in sizes.items()]


def _range_text(gains: Sequence[Gain]) -> str:
    """ "54 to 68% faster (all 5 comparisons)", "-3.0% to +12% (faster in 3, no difference seen in 2 of 5)"."""
    count, verdicts = len(gains), Counter(gain.verdict for gain in gains)
    low, high = min(gain.speedup.value for gain in gains), max(gain.speedup.value for gain in gains)
    span = gain_text(low) if gain_text(low) == gain_text(high) else f"{gain_text(low)} to {gain_text(high)}"
    if len(verdicts) > 1:
        return f"{span} ({', '.join(f'{verdict} in {number}' for verdict, number in verdicts.most_common())} of {count})"
    (verdict,) = verdicts
    how_often = "" if count == 1 else f" (all {count} comparisons)"
    if verdict in ("faster", "slower"):
        return f"{span.replace('+', '').replace('-', '').replace('% to', ' to')} {verdict}{how_often}"
    return f"{verdict}, {span}{how_often}"


def _trend_text(trends: Sequence[Trend]) -> str:
    if not trends:
        return ""
    verdicts = Counter(trend.verdict for trend in trends)
    if len(verdicts) == 1:
        (verdict,) = verdicts
        return {"no difference seen": "; the same on any number, as far as seen", "not certain": ""}.get(verdict, f"; it {verdict}")
    return "; it " + ", ".join(f"{verdict} in {number}" for verdict, number in verdicts.most_common()) + f" of {len(trends)}"


def _grouped(gains: Sequence[Gain], key: Callable[[Gain], tuple[str, ...]]) -> dict[tuple[str, ...], list[Gain]]:
    groups: dict[tuple[str, ...], list[Gain]] = {}
    for gain in gains:
        groups.setdefault(key(gain), []).append(gain)
    return groups


def _model(model: str, gains: Sequence[Gain]) -> str:
    return f", {model}" if len({gain.case.model for gain in gains}) > 1 else ""


def _and_list(values: Sequence[int | str]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, values[:-1])), str(values[-1])]))


def _two_digits(value: float) -> int:
    return int(float(f"{value:.2g}"))
