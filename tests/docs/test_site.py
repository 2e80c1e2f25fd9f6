"""The documentation as a site: it builds without a warning, carries what it links to, and asks the network for nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs mkdocs-material: pip install '.[docs]'")
ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)|<link\b[^>]*\bhref=[\"']?([^\"' >]+)")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_the_readme_is_its_front(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in site.glob("*.html")} == pages | {"index", "404"}
    front = (site / "index.html").read_text()
    assert [name for name in pages if f'href="{name}.html"' not in front and f"href={name}.html" not in front] == []


def test_files_that_pages_link_to_go_along(site: Path) -> None:
    carried = [file.relative_to(site / "repository") for file in (site / "repository").rglob("*") if file.is_file()]
    assert len(carried) > 30
    assert all((site / "repository" / file).read_bytes() == (ROOT / file).read_bytes() for file in carried)


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    loaded = [(page.name, first or second) for page in site.glob("*.html") for first, second in LOADED.findall(page.read_text())]
    assert len(loaded) > 100
    assert [each for each in loaded if "//" in each[1]] == []
    assert [sheet.name for sheet in site.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//", sheet.read_text())] == []


def test_links_to_nothing_fail_the_build(tmp_path: Path) -> None:
    links = ["docs/absent.md", "docs/page.md#absent", "benchmarks/results/absent.json"]
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "site_links.py", tmp_path / "docs")
    (tmp_path / "docs" / "page.md").write_text("# A page\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings + "\nnav: [index.md, page.md]\n")
    (tmp_path / "README.md").write_text("# Front\n\n" + "".join(f"[it]({link})\n" for link in ["docs/page.md", *links]))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert [sum(name in line for line in warnings) for name in ("absent.md", "#absent", "absent.json")] == [1, 1, 1], done.stderr
