"""The documentation as a site: it builds without a warning, carries what it links to, and asks the network for nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browser import Browser

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


def test_code_in_tables_has_no_backslash_of_theirs(site: Path) -> None:
    assert '<code><span class="option">--device</span> cuda|cpu</code>' in (site / "reference.html").read_text()
    assert [page.name for page in site.glob("*.html") if re.search(r"<code>[^\n]*\\\|[^\n]*</code></td>", page.read_text())] == []


@pytest.mark.browser
def test_from_disk_it_is_searched_fits_and_follows_the_system(site: Path, tmp_path: Path) -> None:
    """Without a server, and with a theme that changes with the system's after the first visit as well."""
    browser = Browser(tmp_path / "profile")
    try:
        found: list[str] = []
        browser.show(f"file://{site}/index.html")
        browser.run("const q = document.querySelector('input[name=query]'); q.focus(); q.value = 'kubernetes';")
        until = time.monotonic() + 60
        while not found:
            assert time.monotonic() < until, browser.console()
            browser.run("document.querySelector('input[name=query]').dispatchEvent(new Event('keyup', {bubbles: true}))")
            time.sleep(0.2)
            found = browser.run("return [...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'))")
        assert any("run.html" in link for link in found)
        assert browser.run("const table = document.querySelectorAll('pre > code')[1]; return table.scrollWidth - table.clientWidth") == 0
        schemes = []
        for is_dark in (False, True, False):
            browser.show(f"file://{site}/first_hour.html", is_dark=is_dark)
            schemes.append(browser.run("return document.body.getAttribute('data-md-color-scheme')"))
        assert schemes == ["default", "slate", "default"]
        assert [address for address in browser.requested() if address.startswith("http")] == []
        assert browser.console() == []
    finally:
        browser.close()


def test_links_to_nothing_fail_the_build(tmp_path: Path) -> None:
    links = ["docs/absent.md", "docs/page.md#absent", "benchmarks/results/absent.json"]
    (tmp_path / "docs").mkdir()
    for name in ("site_links.py", "site.css", "iframe-worker.js"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs" / "page.md").write_text("# A page\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(settings + "\nnav: [index.md, page.md]\n")
    (tmp_path / "README.md").write_text("# Front\n\n" + "".join(f"[it]({link})\n" for link in ["docs/page.md", *links]))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert [sum(name in line for line in warnings) for name in ("absent.md", "#absent", "absent.json")] == [1, 1, 1], done.stderr
