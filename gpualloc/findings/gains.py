"""What precision and the details of training do to the speed, everything else being equal."""

from __future__ import annotations

from collections.abc import Sequence

from gpualloc.findings.ratio import Interval
from gpualloc.findings.records import Gain, Trend
from gpualloc.findings.rows import ratio_of_speedups, rows_apart_by, setting, speedup
from gpualloc.records import DETAILS, Measurement

_PRECISION_BASES = ("fp64", "fp32")


def precision_gains(rows: Sequence[Measurement]) -> tuple[Gain, ...]:
    """Every precision against fp64, and every lower one against fp32."""
    gains = []
    for group in rows_apart_by(rows, "precision"):
        by_precision = {row.case.precision: row for row in group}
        for name in _PRECISION_BASES:
            base = by_precision.get(name)
            changed = [row for row in group if base is not None and row.case.precision not in ("fp64", name)]
            gains += [_gain("precision", row, base) for row in changed if base is not None]
    return tuple(gains)


def detail_gains(rows: Sequence[Measurement]) -> tuple[Gain, ...]:
    """Every detail away from its default against the default; without a case at the default, against the first value measured."""
    return tuple(_gain(name, changed, base) for name, changed, base in _detail_pairs(rows))


def detail_trends(rows: Sequence[Measurement]) -> tuple[Trend, ...]:
    """How those gains on the most ranks compare with those on the fewest."""
    pairs = _detail_pairs(rows)
    base_of = {(name, id(changed)): base for name, changed, base in pairs}
    trends = []
    for name in dict.fromkeys(name for name, _, _ in pairs):
        changed_rows = [changed for pair_name, changed, _ in pairs if pair_name == name]
        for group in _by_num_ranks(changed_rows):
            few, many = group[0], group[-1]
            change = ratio_of_speedups(many, base_of[name, id(many)], few, base_of[name, id(few)])
            trends.append(
                Trend(
                    question=name,
                    case=many.case,
                    changed=_value(many, name),
                    base=_value(base_of[name, id(many)], name),
                    from_world_size=few.case.world_size,
                    change=change,
                    verdict=_verdict(change, "gains with more ranks", "loses with more ranks"),
                )
            )
    return tuple(trends)


def _detail_pairs(rows: Sequence[Measurement]) -> list[tuple[str, Measurement, Measurement]]:
    """(field, changed, base) of every two cases that differ in one detail."""
    pairs = []
    for name in DETAILS:
        if len({getattr(row.case, name) for row in rows}) < 2:
            continue
        for group in rows_apart_by(rows, name):
            base = next((row for row in group if getattr(row.case, name) == DETAILS[name]), group[0])
            pairs += [(name, row, base) for row in group if _value(row, name) != _value(base, name)]
    return pairs


def _by_num_ranks(rows: Sequence[Measurement]) -> list[list[Measurement]]:
    """Groups of two or more that differ in the number of ranks, fewest first; a single process begins the group of every hook."""
    singles = [row for row in rows if row.case.strategy == "single"]
    spread = [row for row in rows if row.case.strategy != "single"]
    groups = []
    for group in rows_apart_by(spread, "world_size"):
        first = [row for row in singles if len(rows_apart_by([row, group[0]], "strategy", "hook", "world_size")) == 1]
        ordered = first[:1] + sorted(group, key=lambda row: row.case.world_size)
        if ordered[0].case.world_size < ordered[-1].case.world_size:
            groups.append(ordered)
    return groups


def _gain(question: str, changed: Measurement, base: Measurement) -> Gain:
    ratio = speedup(changed, base)
    return Gain(
        question=question,
        case=changed.case,
        changed=_value(changed, question),
        base=_value(base, question),
        speedup=ratio,
        verdict=verdict_on_speed(ratio),
    )


def verdict_on_speed(ratio: Interval) -> str:
    """ "faster", "slower", "no difference seen", or "not certain" for a single repeat."""
    return _verdict(ratio, "faster", "slower")


def _value(row: Measurement, name: str) -> str:
    value = setting(row.case)[name]
    if value is None:
        return "default"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _verdict(ratio: Interval, above: str, below: str) -> str:
    if ratio.low is None:
        return "not certain"
    return above if ratio.is_above(1) else below if ratio.is_below(1) else "no difference seen"
