"""`gpualloc doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpualloc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpualloc.doctor import Finding

_MACHINE, _SCRIPT, _FILES = "This machine", "A training script", "Result"


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what is measured: copies, a loader, collectives.", rich_help_panel=_MACHINE)
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Do what is safe: delete folders of killed runs. All else is only told.", rich_help_panel=_MACHINE)
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Rescue what is whole of damaged files of gpualloc; a copy is kept.", rich_help_panel=_MACHINE),
    ] = False,
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Check this training script and the modules beside it instead; it is not run.", rich_help_panel=_SCRIPT
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for a warning, too.", rich_help_panel=_FILES)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_FILES)] = False,
) -> None:
    """Check what training needs here: torch, the extension, GPUs and their links, limits, settings; or a training script.

    Takes 5 to 15 seconds, most of them to load torch and to measure. Exits with 1 if a check fails; a warning stops nothing.

    Examples:
      gpualloc doctor
      gpualloc doctor --quick --json
      gpualloc doctor --script train.py --strict
      gpualloc doctor --repair
    """
    if script is not None and (quick or fix or repair):
        raise UsageError("--script checks a script; leave out --quick, --fix and --repair, which are for the machine")
    if repair and (quick or fix):
        raise UsageError("--repair does nothing else; leave out --quick and --fix")
    if repair:
        _repair(as_json=as_json)
        return
    findings = _check_script(script) if script is not None else _check_machine(is_quick=quick, is_fixing=fix)
    _print(findings, as_json=as_json)
    statuses = {finding.status for finding in findings}
    if "FAIL" in statuses or (strict and "WARN" in statuses):
        raise typer.Exit(1)


def _check_machine(*, is_quick: bool, is_fixing: bool) -> list[Finding]:
    from gpualloc import doctor as checks

    with _Progress() as progress:
        findings = checks.run_checks(measured_checks=() if is_quick else checks.MEASURED_CHECKS, tell=progress.tell)
    if is_fixing:
        for finding, what in checks.fix(findings):
            print(f"{finding.name}: {what}", file=sys.stderr)
        findings = [finding for finding in findings if finding.fix is None] + checks.run_checks(checks.fixable_checks(findings))
    return findings


def _check_script(script: Path) -> list[Finding]:
    from gpualloc.doctor.script import check_script

    return check_script(script)


def _repair(*, as_json: bool) -> None:
    """Of every file of ours in its place; those that are whole or were never made are left as they are."""
    from dataclasses import asdict

    from gpualloc.cli.tables import print_json, printable
    from gpualloc.doctor.storage import KEPT_FILES
    from gpualloc.store.repair import repair

    done = []
    for kept in KEPT_FILES:
        path = kept.default_path()
        if path.exists():
            done.append((kept.name, repair(path, kept.schema())))
    if as_json:
        rows = [{"name": name, **asdict(row), "path": str(row.path), "copy": row.copy and str(row.copy)} for name, row in done]
        print_json(rows)
        return
    for name, row in done:
        if row.damage is None:
            print(printable(f"{name} {row.path}: whole, left as it is"))
            continue
        rescued = ", ".join(f"{count} {table}" for table, count in row.rescued_rows.items()) or "nothing"
        end = "" if row.is_complete else "; parts of it could not be read"
        print(printable(f"{name} {row.path}: {row.damage}; rescued {rescued}{end}; as it was: {row.copy}"))
    if not done:
        print("nothing to repair: gpualloc has no files here yet", file=sys.stderr)


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.text import Text

    from gpualloc.cli.tables import output_console, print_json, printable, text_table

    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    style = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
    table = text_table("", "check", "seen", fixed=["", "check"])
    for finding in findings:
        where = f"{finding.place}: " if finding.place else ""
        seen = Text(printable(where + finding.seen))
        if finding.advice:
            seen.append(f"\n{printable(finding.advice)}", style=style[finding.status])
        table.add_row(Text(finding.status, style=style[finding.status]), finding.name, seen)
    output_console().print(table)


class _Progress:
    """The check that runs, on one line of a terminal that is wiped at the end; nothing where stderr is not one."""

    def __enter__(self) -> _Progress:
        self._is_shown = sys.stderr.isatty()
        return self

    def tell(self, name: str) -> None:
        if self._is_shown:
            print(f"\r\x1b[Kchecking: {name}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
