"""Shell blocks of the documentation: indented blocks, and fences without a language. What is printed, or is code, names its language."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True, kw_only=True)
class Command:
    page: str
    block: int  # the line in which its block begins
    text: str  # one line, without its comment

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def commands_of(page: str) -> list[Command]:
    text = (ROOT / page).read_text()
    return [Command(page=page, block=line, text=command) for line, block in shell_blocks(text) for command in commands_in(block)]


def shell_blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line number, what it holds without indentation) of each block, top to bottom."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line, before = lines[number], lines[number - 1] if number else ""
        fence = re.match(r"```(\w*)$", line)
        end = number + 1
        if fence:
            end = lines.index("```", end)
            if not fence[1]:
                yield number + 1, "\n".join(lines[number + 1 : end])
            end += 1
        elif line.startswith("    ") and not before.strip():
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            yield number + 1, "\n".join(line[4:] for line in lines[number:end])
        number = end


def commands_in(block: str) -> list[str]:
    """A command may go on in the next line after a backslash."""
    whole = re.sub(r"\s*\\\n\s*", " ", block)
    return [command for line in whole.splitlines() if (command := re.sub(r"(^|\s+)#\s.*$", "", line).strip())]
