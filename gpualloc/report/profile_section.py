"""Where a step goes: bars of its parts, the verdict, and the timeline of one step."""

from __future__ import annotations

from gpualloc.profiling.records import PARTS, Profile
from gpualloc.report.blocks import Block, Missing, Note, Section, table
from gpualloc.report.charts import Bar, BarChart, Lane, LaneChart, Part, Span
from gpualloc.report.figures import figure
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.numbers import digits, milliseconds, percent
from gpualloc.report.timeline import LANES, step_timeline
from gpualloc.report.words import Words

_MAX_RANKS = 16  # bars
_MAKE_PROFILE = "gpualloc profile --json -- train.py > profile.json && gpualloc report --profile profile.json"
# The same colour for the same thing in both figures.
_PART_COLOURS = {
    "input_wait_s": 4,
    "host_to_device_s": 3,
    "kernels_s": 0,
    "optimizer_s": 2,
    "exposed_comm_s": 1,
    "other_memory_s": 6,
    "launch_gap_s": 7,
}
_LANE_COLOURS = {"input": 4, "forward": 0, "backward": 5, "collectives": 1, "optimizer": 2, "copies": 3}


def profile_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    profile = inputs.profile
    blocks = (Missing(text=words("missing.profile"), command=_MAKE_PROFILE),) if profile is None else _profile_blocks(profile, words)
    return [
        Section(key="profile", title=words("sec.profile"), blocks=blocks),
        Section(key="timeline", title=words("sec.timeline"), blocks=_timeline_blocks(inputs, words)),
    ]


def _profile_blocks(profile: Profile, words: Words) -> tuple[Block, ...]:
    ranks = profile.ranks[:_MAX_RANKS]
    device = ranks[0].device
    parts = [name for name in PARTS if any(getattr(rank.times, name) > 0 for rank in ranks)]
    chart = BarChart(
        x_label=words("axis.ms_per_step"),
        bars=tuple(
            Bar(
                label=words("rank.name", n=rank.rank), value=rank.times.step_time_s * 1e3, text=f"{milliseconds(rank.times.step_time_s)} ms"
            )
            for rank in ranks
        ),
        parts=tuple(
            Part(
                label=_part_name(name, device, words),
                values=tuple(getattr(rank.times, name) * 1e3 for rank in ranks),
                colour=_PART_COLOURS[name],
            )
            for name in parts
        ),
    )
    rows = [
        (
            _part_name(name, device, words),
            *(cell for rank in ranks for cell in _part_cells(getattr(rank.times, name), rank.times.step_time_s)),
        )
        for name in parts
    ]
    headers = [words("col.part"), *(text for rank in ranks for text in (f"{words('rank.name', n=rank.rank)}, ms", "%"))]
    verdict = profile.verdict
    kind = verdict.kind
    lead = words("profile.verdict", kind=words.name("bound", kind), share=percent(verdict.share), subject=profile.subject)
    advice = words.name("bound_step", kind) if words.language != "en" else verdict.next_step
    evidence = "; ".join(verdict.evidence)
    overlap = [rank.times.overlap_ratio for rank in ranks if rank.times.overlap_ratio is not None]
    notes: list[Block] = [Note(text=lead, mood="unsure"), Note(text=words("profile.next", step=advice))]
    if overlap:
        notes.append(Note(text=words("profile.overlap", low=percent(min(overlap)), high=percent(max(overlap)))))
    return (
        *notes,
        figure(
            chart,
            name="profile",
            title=words("fig.profile"),
            caption=words("fig.profile.caption", device=ranks[0].device_name, n=ranks[0].num_steps),
            table=table(words("fig.profile"), headers, rows, numbers="." + "n" * (2 * len(ranks))),
            command="gpualloc profile",
        ),
        Note(text=words("profile.evidence", evidence=evidence), mood="muted", language="en"),
        *(Note(text=note, mood="muted", language="en") for note in dict.fromkeys(note for rank in ranks for note in rank.notes)),
    )


def _part_cells(seconds: float, step_s: float) -> tuple[str, str]:
    return milliseconds(seconds), percent(seconds / step_s, 1) if step_s else "–"


def _part_name(name: str, device: str, words: Words) -> str:
    on_cpu = f"{name}.cpu"
    special = words.name("part", on_cpu)
    return special if device == "cpu" and special != on_cpu else words.name("part", name)


def _timeline_blocks(inputs: ReportInputs, words: Words) -> tuple[Block, ...]:
    if inputs.trace is None:
        return (Missing(text=words("missing.timeline"), command=_MAKE_PROFILE),)
    found = step_timeline(inputs.trace)
    if found is None:
        return (Note(text=words("timeline.no_step"), mood="muted"),)
    used = [name for name in LANES if name in found.lanes]
    lanes = tuple(
        Lane(
            name=words(f"lane.{name}"),
            spans=tuple(
                Span(
                    start=span.start_ms,
                    end=span.end_ms,
                    label=str(span.number) if span.number is not None else f"{digits(span.end_ms - span.start_ms)} ms",
                    colour=_LANE_COLOURS[name],
                )
                for span in found.lanes[name]
            ),
        )
        for name in used
    )
    rows = [
        (
            words(f"lane.{name}") + (f" {span.number}" if span.number is not None else ""),
            f"{span.start_ms:,.2f}",
            f"{span.end_ms - span.start_ms:,.2f}",
        )
        for name in used
        for span in found.lanes[name]
    ]
    headers = [words("col.part"), words("col.start_ms"), words("col.length_ms")]
    title = words("fig.timeline")
    communicates = "collectives" in found.lanes
    key = "fig.timeline.caption" if communicates else "fig.timeline.alone"
    caption = words(
        key, step=f"{found.step_ms:,.2f}", hidden=f"{found.hidden_ms:,.2f}", exposed=f"{found.exposed_ms:,.2f}", n=found.step_number
    )
    return (
        figure(
            LaneChart(x_label=words("axis.ms"), lanes=lanes, colours=()),
            name="timeline",
            title=title,
            caption=caption,
            table=table(title, headers, rows, numbers=".nn"),
            command="gpualloc profile",
        ),
    )
