"""The engineer's part: figures equal to the records they come from."""

import re
from dataclasses import replace

import pytest

from gpualloc.profiling.trace import parse_trace
from gpualloc.report.blocks import Commands, Figure, Note, RawRows, Section, Table
from gpualloc.report.later_stages import AdviceFile, ForecastFile, PlanFile, SimulationFile, TimelineFile
from gpualloc.report.rehearsal_file import RehearsalFile
from gpualloc.report.render import engineer_sections
from gpualloc.report.timeline import step_timeline
from gpualloc.report.words import Words
from gpualloc.watching import find_waste
from gpualloc.watching.waste import WasteRule
from tests.findings.studied_runs import study_run
from tests.report.inputs import inputs_of, made_trace, many_rows, rich_inputs, study_inputs
from tests.report.later import ADVICE, FORECAST, PLAN, REHEARSAL, SIMULATION, TIMELINE
from tests.watching.made_samples import series

EN = Words("en")


def sections_of(inputs: object, words: Words = EN) -> dict[str, Section]:
    return {section.key: section for section in engineer_sections(inputs, words)}  # type: ignore[arg-type]


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def first_figure(section: Section) -> Figure:
    return next(block for block in section.blocks if isinstance(block, Figure))


def test_absent_parts_are_one_list_of_what_makes_them() -> None:
    found = sections_of(inputs_of(study_run()))
    assert list(found) == ["precision", "scaling", "best", "environment", "commands", "rows", "missing"]
    (block,) = found["missing"].blocks
    assert isinstance(block, Commands)
    assert (
        "Details: pinned memory, layout, compile: No detail such as pinned memory was varied.",
        "gpualloc bench --pin-memory on,off --channels-last on,off",
    ) in block.lines
    assert all(command.startswith("gpualloc ") for _, command in block.lines)


def test_gains_are_the_findings() -> None:
    inputs = study_inputs()
    gains = inputs.studies[0].findings.precision_gains
    rows = texts(first_figure(sections_of(inputs)["precision"]).table)
    assert len(rows) == len(gains)
    assert rows[0][0] == f"{gains[0].changed} / {gains[0].base}"
    assert all(
        row[2].startswith(f"{(gain.speedup.value - 1) * 100:+.0f}%")
        for row, gain in zip(rows, gains, strict=True)
        if abs(gain.speedup.value - 1) > 0.1
    )
    details = texts(first_figure(sections_of(inputs)["details"]).table)
    assert [row[0] for row in details if row[0].startswith("pin")] == ["pin_memory off, not on"] * 3


def test_efficiencies_are_the_findings() -> None:
    inputs = inputs_of(study_run())
    table = next(block for block in sections_of(inputs)["scaling"].blocks if isinstance(block, Table))
    expected = [(f"{each.efficiency.value * 100:.1f}%", each.verdict) for each in inputs.studies[0].efficiencies]
    assert [(row[3], row[5]) for row in texts(table)] == expected


def test_the_profile_adds_up() -> None:
    figure = first_figure(sections_of(rich_inputs())["profile"])
    cells = texts(figure.table)
    assert sum(float(row[1]) for row in cells) == pytest.approx(1000.0)
    assert ["exposed communication", "200.00", "20.0%", "200.00", "20.0%"] in cells
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="16.0" class="b', figure.wide)]
    assert widths[2] / widths[4] == pytest.approx(0.55 / 0.2, rel=0.01)


def test_the_timeline_tells_what_is_hidden() -> None:
    found = step_timeline(made_trace())
    assert found is not None
    assert found.step_ms == pytest.approx(100)
    assert {name: [(round(span.start_ms), round(span.end_ms), span.number) for span in spans] for name, spans in found.lanes.items()} == {
        "forward": [(0, 30, None)],
        "backward": [(30, 80, None)],
        "collectives": [(50, 70, 1), (75, 95, 2)],
        "optimizer": [(95, 100, None)],
    }
    assert (found.hidden_ms, found.exposed_ms) == (pytest.approx(25), pytest.approx(15))
    assert "25.00 ms are hidden behind computing and 15.00 ms are exposed" in first_figure(sections_of(rich_inputs())["timeline"]).caption
    assert step_timeline(parse_trace([])) is None


def test_later_stages_are_shown() -> None:
    found = sections_of(
        study_inputs(
            rehearsal=RehearsalFile.model_validate(REHEARSAL),
            plan=PlanFile.model_validate(PLAN),
            advice=AdviceFile.model_validate(ADVICE),
            forecast=ForecastFile.model_validate(FORECAST),
            simulation=SimulationFile.model_validate(SIMULATION),
            timeline=TimelineFile.model_validate(TIMELINE),
        )
    )
    assert texts(first_figure(found["rehearsal"]).table)[1][-2:] == ["1.80×", "90%"]
    plan = first_figure(found["plan"])
    assert plan.wide.count('class="lane"') == 3
    assert texts(plan.table)[0] == ["train-a", "2 × h100", "bf16, ddp/gpualloc_auto", "0", "10 h", "500 [450, 520]", "40.00 EUR"]
    assert any(isinstance(block, Note) and block.text == "train-b waits: no room" for block in found["plan"].blocks)
    assert texts(first_figure(found["forecast"]).table)[1] == ["net", "64", "–", "–", "refused", "not enough evidence"]
    options = next(block for block in found["advice"].blocks if isinstance(block, Table))
    assert texts(options)[0][:5] == ["2 GPUs", "bf16, ddp/none, 32 per rank", "measured", "1.80× [1.70×, 1.90×]", "90%"]
    gantt = first_figure(found["simulation"])
    assert gantt.wide.count('class="lane"') == 3  # two jobs at once on node a, one on b
    assert texts(gantt.table)[1] == ["job-2", "a ×1, b ×1", "1.00", "1.50"]
    policies = found["simulation"].blocks[-1]
    assert isinstance(policies, Table)
    assert texts(policies)[0][:3] == ["greedy", "0.500 [-0.10, 1.1]", "–"]


def test_utilisation_is_what_was_watched() -> None:
    from gpualloc.report import Watched

    samples = tuple(series((5000.0, 50.0), (5000.0, 51.0)))
    section = sections_of(study_inputs(watched=Watched(samples=samples, waste=find_waste(samples, WasteRule()))))["utilisation"]
    rows = texts(first_figure(section).table)
    assert len(rows) <= 240
    assert {row[2] for row in rows} <= {"50%", "51%"}
    assert "2.8 h" in first_figure(section).caption


def test_raw_rows_are_all_there_and_long_ones_are_paged() -> None:
    short = sections_of(study_inputs())["rows"].blocks
    assert isinstance(short[-1], Table)
    assert len(short[-1].rows) == len(study_inputs().studies[0].runs[0].measurements)
    (paged,) = sections_of(inputs_of(many_rows(201)))["rows"].blocks
    assert isinstance(paged, RawRows)
    assert (len(paged.rows), paged.num_shown) == (201, 200)


def test_runs_of_several_machines_are_not_compared_with_each_other() -> None:
    one, other = study_inputs(), inputs_of([row for row in study_run() if row.case.world_size == 1])
    environment = replace(other.studies[0].environment, device_name="NVIDIA L40S")  # type: ignore[type-var]
    both = replace(one, studies=(replace(other.studies[0], environment=environment), one.studies[0]))
    found = sections_of(both)
    titles = [block.title for block in found["precision"].blocks if isinstance(block, Figure)]
    assert titles == ["Gain by precision – NVIDIA L40S", "Gain by precision – NVIDIA H200"]
    table = found["environment"].blocks[0]
    assert isinstance(table, Table)
    assert ["device", "NVIDIA L40S", "NVIDIA H200"] in texts(table)
