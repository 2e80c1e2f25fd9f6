"""Where it was measured, with which commands, and every row."""

from __future__ import annotations

from dataclasses import fields

from gpualloc.records import Environment, Measurement
from gpualloc.report.blocks import Block, Cell, Column, Commands, Note, RawRows, Section, table
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.naming import noun
from gpualloc.report.numbers import ABSENT, gib, megabytes, milliseconds, percent
from gpualloc.report.words import Words

ROWS_WITHOUT_SCRIPT = 200  # in the page itself; see docs/report.md for how long it takes to open with more


def machine_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    return [_environment(inputs, words), _commands(inputs, words), raw_rows_section(inputs, words)]


def _environment(inputs: ReportInputs, words: Words) -> Section:
    known = [study.environment for study in inputs.studies if study.environment is not None]
    if not known:
        return Section(key="environment", title=words("sec.environment"), blocks=(Note(text=words("environment.unknown"), mood="muted"),))
    rows = []
    for field in fields(Environment):
        values = [getattr(environment, field.name) for environment in known]
        if any(value is not None for value in values):
            rows.append((words.name("env", field.name), *(ABSENT if value is None else str(value) for value in values)))
    headers = [
        words("col.property"),
        *(words("machine", n=place + 1) if len(known) > 1 else words("col.value") for place in range(len(known))),
    ]
    return Section(key="environment", title=words("sec.environment"), blocks=(table(words("tab.environment"), headers, rows),))


def _commands(inputs: ReportInputs, words: Words) -> Section:
    lines = [
        (
            words(
                "command.run",
                run=run.name,
                machine=study.machine,
                when=_minute(run.started_at_utc),
                status=words.name("status", run.status),
            ),
            run.command,
        )
        for study in inputs.studies
        for run in study.runs
    ]
    for study in inputs.studies:
        lines += [
            (words("command.read", run=run.name), f"gpualloc results compare {run.name}") for run in study.runs if run.name.isdecimal()
        ]
    if inputs.profile is not None:
        lines.append((words("command.profile"), f"gpualloc profile ... ({inputs.profile.subject})"))
    if inputs.rehearsal is not None:
        lines.append((words("command.rehearse"), f"gpualloc rehearse ... -- {inputs.rehearsal.command}"))
    if inputs.watched is not None:
        lines.append((words("command.watch"), "gpualloc watch report"))
    lines.append((words("command.report"), inputs.command))
    return Section(key="commands", title=words("sec.commands"), blocks=(Commands(lines=tuple(lines)),))


def _minute(time_utc: str) -> str:
    return time_utc[:16].replace("T", " ")


_NUMBERS = ("per_rank", "ranks", "step_ms", "ci", "spread", "compute_ms", "exposed_ms", "per_s", "peak_gib", "wire_mb", "loss_end")
_HEADERS = ("run", "model", "size", "precision", "how", "details", *_NUMBERS, "status")


def raw_rows_section(inputs: ReportInputs, words: Words) -> Section:
    rows = tuple(_row(run.name, row, words) for study in inputs.studies for run in study.runs for row in run.measurements)
    blocks: list[Block] = [Note(text=problem, mood="bad") for problem in inputs.problems]
    columns = tuple(Column(label=words(f"raw.{name}"), is_number=name in _NUMBERS) for name in _HEADERS)
    filled = [place for place in range(len(columns)) if any(row[place] not in ("", ABSENT) for row in rows)]
    columns = tuple(columns[place] for place in filled)
    rows = tuple(tuple(row[place] for place in filled) for row in rows)
    if len(rows) > ROWS_WITHOUT_SCRIPT:
        note = words("raw.note", shown=ROWS_WITHOUT_SCRIPT, n=f"{len(rows):,}")
        blocks.append(
            RawRows(caption=words("tab.raw", n=f"{len(rows):,}"), columns=columns, rows=rows, num_shown=ROWS_WITHOUT_SCRIPT, note=note)
        )
    elif rows:
        numbers = "".join("n" if column.is_number else "." for column in columns)
        cells = [[Cell(text) for text in row] for row in rows]
        blocks.append(
            table(words("tab.raw", n=len(rows)), [column.label for column in columns], cells, numbers=numbers, is_folded=len(rows) > 40)
        )
    else:
        blocks.append(Note(text=words("raw.none"), mood="muted"))
    return Section(key="rows", title=words("sec.rows"), blocks=tuple(blocks))


def _row(run: str, row: Measurement, words: Words) -> tuple[str, ...]:
    case = row.case
    how = f"{case.strategy}/{case.hook}" if case.strategy == "ddp" or case.hook != "none" else case.strategy
    details = [name if value is True else f"{name}={value}" for name, value in case.details().items()]
    throughput = row.samples_per_s if row.tokens_per_s is None else row.tokens_per_s
    has_interval = row.step_time_ci_low_s is not None and row.step_time_ci_high_s is not None
    remarks = [words.name("status", row.status), *filter(None, [row.reason]), *row.disturbances, *row.notes]
    return (
        run,
        case.model,
        f"{case.image_size_px}\u00a0px" if case.image_size_px is not None else f"{case.sequence_length}\u00a0tok",
        case.precision,
        how,
        " ".join([*details, *filter(None, [case.cluster()])]),
        f"{case.per_device_batch_size:,}",
        words.devices(case.world_size, noun(case)) if case.ranks_per_gpu > 1 else str(case.world_size),
        milliseconds(row.step_time_s),
        f"{milliseconds(row.step_time_ci_low_s)}–{milliseconds(row.step_time_ci_high_s)}" if has_interval else ABSENT,
        percent(row.spread, 1),
        milliseconds(row.compute_time_s),
        milliseconds(row.exposed_comm_s),
        ABSENT if throughput is None else f"{throughput:,.0f}" if throughput >= 100 else f"{throughput:.2f}",
        gib(row.peak_memory_bytes),
        megabytes(row.wire_bytes_per_step),
        ABSENT if row.loss_end is None else f"{row.loss_end:.3f}",
        ": ".join(remarks[:2]) + (f" (+{len(remarks) - 2})" if len(remarks) > 2 else ""),
    )
