"""From inputs to HTML: one file that needs nothing else, with a content security policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gpualloc.report.blocks import Commands, Missing, RawRows, Section
from gpualloc.report.comparisons import comparison_sections
from gpualloc.report.inputs import ReportInputs
from gpualloc.report.later_sections import later_sections
from gpualloc.report.machine_sections import machine_sections
from gpualloc.report.manager import manager_part
from gpualloc.report.profile_section import profile_sections
from gpualloc.report.utilisation import utilisation_section
from gpualloc.report.words import Words

_SCRIPT_WORDS = ("page", "rows", "filter", "previous", "next", "lost")  # with {page}, {pages} and {n} for the script to fill in
_TEMPLATES = Path(__file__).with_name("templates")


def render(inputs: ReportInputs, *, language: str = "en", is_live: bool = False) -> str:
    """The page.

    Args:
        inputs: at least one study.
        language: of `gpualloc.report.words.LANGUAGES`.
        is_live: it is served, and asks its server for news.
    """
    words = Words(language)
    sections = engineer_sections(inputs, words)
    style, script = _asset("page.css"), _asset("page.js")
    html: str = (
        _environment()
        .get_template("page.html.j2")
        .render(
            w=words,
            inputs=inputs,
            manager=manager_part(inputs, words),
            sections=sections,
            machines=" · ".join(dict.fromkeys(study.machine for study in inputs.studies)),
            is_cpu=all(row.case.device == "cpu" for study in inputs.studies for row in study.measurements),
            is_running=any(run.status == "running" for study in inputs.studies for run in study.runs),
            is_live=is_live,
            policy=content_policy(is_live=is_live),
            style=Markup(style),
            script=Markup(script),
            script_words=_data({key: words(f"script.{key}", page="{page}", pages="{pages}", n="{n}") for key in _SCRIPT_WORDS}),
            raw=_data(_raw(sections)),
        )
    )
    return html


def content_policy(*, is_live: bool) -> str:
    """The page's Content-Security-Policy: its own style and script and, where it is served, its server; nothing else."""
    allowed = [
        "default-src 'none'",
        f"style-src '{_digest(_asset('page.css'))}'",
        f"script-src '{_digest(_asset('page.js'))}'",
        *(["connect-src 'self'"] if is_live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(allowed)


def engineer_sections(inputs: ReportInputs, words: Words) -> list[Section]:
    """The page's lower part."""
    sections = [
        *comparison_sections(inputs, words),
        *profile_sections(inputs, words),
        *later_sections(inputs, words),
        utilisation_section(inputs, words),
    ]
    present = [section for section in sections if not any(isinstance(block, Missing) for block in section.blocks)]
    lines = tuple(
        (f"{section.title}: {block.text}", block.command) for section in sections for block in section.blocks if isinstance(block, Missing)
    )
    absent = [Section(key="missing", title=words("sec.missing"), blocks=(Commands(lines=lines),))] if lines else []
    return [*present, *machine_sections(inputs, words), *absent]


def encode(html: str) -> bytes:
    """UTF-8; what names of files and models hold that is no character is written as an escape."""
    return html.encode("utf-8", "backslashreplace")


def _raw(sections: list[Section]) -> dict[str, Any] | None:
    found = next((block for section in sections for block in section.blocks if isinstance(block, RawRows)), None)
    if found is None:
        return None
    return {"numbers": [column.is_number for column in found.columns], "rows": found.rows}


def _data(value: object) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    return environment
