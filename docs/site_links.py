"""For mkdocs: the README is the site's front page, and files of the repository that pages link to go along, so that links work offline.

Pages are written for reading in the repository: a link such as ../benchmarks/results/x.json leaves docs/, which a site cannot.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"`[^`\n]*`")
CODE_IN_TEXT = re.compile(r"(?<!<pre>)<code>([^<]*)</code>")
OPTION = re.compile(r"(?<![^\s>])--?[a-z][\w-]*")
FRONT = "index.md"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the README and every file that a page links to outside of docs/."""
    files.append(File.generated(config, FRONT, content=(ROOT / "README.md").read_text()))
    targets = {target for file in files.documentation_pages() for target in _targets(file) if not target.startswith("docs/")}
    for target in sorted(targets - {"README.md"}):
        if (ROOT / target).is_file():  # a link to nothing stays one, and fails the build
            files.append(File.generated(config, f"repository/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as they are in the site, and a bar within code of a table without the backslash that GitHub wants."""
    file = page.file
    if file.src_uri == FRONT:
        page.meta["hide"] = ["navigation"]  # which has one entry there, and takes the tables' room

    def in_site(link: re.Match[str]) -> str:
        target, anchor = _from_root(file, link[1]), link[2] or ""
        if target == "README.md":
            return f"]({FRONT}{anchor})"
        return f"]({target.removeprefix('docs/') if target.startswith('docs/') else f'repository/{target}'}{anchor})"

    lines = LINK.sub(in_site, markdown).split("\n")
    return "\n".join(CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line for line in lines)


def on_page_content(html: str, **_: Any) -> str:
    """Options within a text stay whole: a browser would break a line behind any of their dashes."""
    return CODE_IN_TEXT.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)


def _targets(file: File) -> set[str]:
    return {_from_root(file, link[1]) for link in LINK.finditer(file.content_string)}


def _from_root(file: File, link: str) -> str:
    """`../examples/study.yaml` of a page of docs/, `docs/bench.md` of the README: where it is in the repository."""
    if file.src_uri == FRONT:
        return link
    return link.removeprefix("../") if link.startswith("../") else f"docs/{link}"
