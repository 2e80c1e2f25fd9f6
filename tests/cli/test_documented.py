"""Every command has a page, and every option is in the reference."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gpualloc.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {  # of commands whose page has another name
    "bench --quality": "quality",
    "calibrate": "rehearse",
    "config": "command_line",
    "logs": "run",
    "status": "run",
    "stop": "run",
    "study": "guided_study",
}
COMMANDS: Any = get_command(app)


@pytest.mark.parametrize("name", list(COMMANDS.commands))
def test_every_command_has_a_page(name: str) -> None:
    page = DOCS / f"{PAGES.get(name, name)}.md"
    assert f"gpualloc {name}" in page.read_text()
    assert f"docs/{page.name}" in (DOCS.parent / "README.md").read_text()


def test_the_reference_is_what_the_code_says() -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))["make_reference"]()
    assert (DOCS / "reference.md").read_text() == made, "run: python docs/make_reference.py"
    assert made.count("`--") > 300
