"""`gpualloc doctor`."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check what gpualloc needs: torch, the compiled extension, GPUs and their driver, disk.

    Exits with 1 if a check fails; a warning does not stop gpualloc from running.

    \b
    Examples:
      gpualloc doctor
      gpualloc doctor --json
    """
    from dataclasses import asdict

    from gpualloc import doctor as checks
    from gpualloc.cli.tables import output_console, print_json, printable, text_table

    findings = checks.run_checks()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        from rich.text import Text

        style = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
        table = text_table("", "check", "seen", fixed=["", "check"])
        for finding in findings:
            seen = Text(printable(finding.seen))
            if finding.advice:
                seen.append(f"\n{printable(finding.advice)}", style=style[finding.status])
            table.add_row(Text(finding.status, style=style[finding.status]), finding.name, seen)
        output_console().print(table)
    if any(finding.status == "FAIL" for finding in findings):
        raise typer.Exit(1)
