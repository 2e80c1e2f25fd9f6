"""The page in a real browser: no error, nothing from outside, the store's figures, nothing clipped or overlapping, quick with many rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpualloc.report import ReportInputs, encode, render
from gpualloc.report.later_stages import PlanFile, TimelineFile
from gpualloc.report.server import ReportServer
from gpualloc.store import ResultsStore
from tests.browser import Browser
from tests.findings.studied_runs import study_run
from tests.report.inputs import hostile_inputs, inputs_of, many_rows, rich_inputs
from tests.report.later import PLAN, TIMELINE
from tests.store.sample_measurements import GPU_ENVIRONMENT

pytestmark = pytest.mark.browser

# Texts of visible charts that reach out of their SVG, and pairs of them that overlap by more than the edge of a glyph.
_TEXT_FAULTS = """
const faults = [];
for (const svg of document.querySelectorAll(".chart svg")) {
  if (!svg.getClientRects().length) continue;
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map((each) => [each.textContent, each.getBoundingClientRect()]).filter(([text]) => text);
  texts.forEach(([text, box], index) => {
    if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
      faults.push(`out: ${svg.querySelector("title").textContent}: ${text}`);
    for (const [other, second] of texts.slice(index + 1)) {
      const width = Math.min(box.right, second.right) - Math.max(box.left, second.left);
      const height = Math.min(box.bottom, second.bottom) - Math.max(box.top, second.top);
      if (width > 2 && height > 4) faults.push(`overlap: ${svg.querySelector("title").textContent}: ${text} / ${other}`);
    }
  });
}
return faults;
"""
_CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (colour) => {
  canvas.fillStyle = "#fff"; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
  const [r, g, b] = parts.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = luminance(getComputedStyle(document.body).backgroundColor);
const ratio = (colour) => { const own = luminance(colour); return (Math.max(own, paper) + 0.05) / (Math.min(own, paper) + 0.05); };
const selectors = ["p", ".tile-value", ".tile-label", "td", "th", "figcaption p", "summary", ".where", "a[href]", "td.good", "td.bad"];
return selectors.map((each) => [each, document.querySelector(each)]).filter(([, found]) => found)
  .map(([each, found]) => [each, ratio(getComputedStyle(found).color)]);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def write(inputs: ReportInputs, path: Path, language: str = "en") -> str:
    path.write_bytes(encode(render(inputs, language=language)))
    return path.as_uri()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Language -> address of a page with every kind of figure."""
    folder = tmp_path_factory.mktemp("pages")
    inputs = rich_inputs(plan=PlanFile.model_validate(PLAN), timeline=TimelineFile.model_validate(TIMELINE))
    return {language: write(inputs, folder / f"{language}.html", language) for language in ("en", "ja")}


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize(("width_px", "is_dark"), [(1280, False), (390, True)])
def test_it_renders_clean_in_both_themes_and_widths(
    browser: Browser, pages: dict[str, str], language: str, width_px: int, is_dark: bool
) -> None:
    browser.requested()
    browser.show(pages[language], width_px=width_px, is_dark=is_dark)
    assert browser.console() == []
    assert {address.split("?")[0] for address in browser.requested()} == {pages[language]}
    assert browser.run(_TEXT_FAULTS) == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    visible = browser.run("return [...document.querySelectorAll('.chart')].filter((each) => each.getClientRects().length).length")
    assert visible == browser.run("return document.querySelectorAll('figure').length") >= 7
    red = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 60) is is_dark
    assert [(name, ratio) for name, ratio in browser.run(_CONTRASTS) if ratio < 4.5] == []  # WCAG 2.2, 1.4.3


def test_the_theme_button_and_the_keyboard(browser: Browser, pages: dict[str, str]) -> None:
    browser.show(pages["en"])
    before = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.run("document.getElementById('theme').click()")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") != before
    assert browser.run("return document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    browser.driver.refresh()
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    browser.run("sessionStorage.clear()")
    browser.show(pages["en"])
    from selenium.webdriver.common.keys import Keys

    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.getAttribute('href')") == "#engineer"
    summary = browser.driver.find_element("css selector", "figure summary")
    summary.send_keys(Keys.ENTER)
    assert browser.run("return document.querySelector('figure details').open")


def test_figures_equal_the_stores(browser: Browser, tmp_path: Path) -> None:
    from gpualloc.report.loading import load_studies

    path = tmp_path / "results.sqlite"
    with ResultsStore(path) as store:
        run_id = store.begin_run(command="gpualloc bench", options={}, environment=GPU_ENVIRONMENT)
        for row in study_run():
            store.add(run_id, row)
        stored = store.measurements(run_id)[0]
    studies, _ = load_studies(["latest"], path, min_efficiency=0.8)
    browser.show(write(ReportInputs(studies=studies, made_at_utc="now", command="gpualloc report"), tmp_path / "page.html"))
    script = "return [...document.querySelectorAll('#rows tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    shown = browser.run(script)
    assert len(shown) == len(stored) == 25
    headers = browser.run("return [...document.querySelectorAll('#rows th')].map((cell) => cell.textContent)")
    step, rate, ranks = (headers.index(name) for name in ("step ms", "samples or tokens/s", "ranks"))
    for cells, row in zip(shown, stored, strict=True):
        assert row.step_time_s is not None
        assert row.samples_per_s is not None
        assert cells[step] == f"{row.step_time_s * 1e3:,.2f}"
        assert cells[rate] == f"{row.samples_per_s:,.0f}"
        assert cells[ranks] == str(row.case.world_size)


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    for language in ("en", "ja"):
        browser.show(write(hostile_inputs(), tmp_path / "page.html", language))
        assert browser.console() == []
        assert browser.run("return [window.stolen === undefined, document.querySelectorAll('img').length]") == [True, 0]
        assert browser.run("return document.querySelectorAll('script').length") == 3
        assert browser.run("return document.body.textContent.includes('<script>window.stolen=1</scr' + 'ipt>')")


def test_ten_thousand_rows_stay_usable(browser: Browser, tmp_path: Path) -> None:
    from dataclasses import replace

    # Each a workload of its own: finding gains among so many takes longer than opening the page, which is what is tested.
    rows = [replace(row, case=replace(row.case, model=f"net_{index}")) for index, row in enumerate(many_rows(10_000))]
    address = write(inputs_of(rows), tmp_path / "page.html")
    start_s = time.perf_counter()
    browser.show(address)
    assert time.perf_counter() - start_s < 10  # 0.8 s on two idle cores
    assert browser.console() == []
    count = "return document.querySelectorAll('#raw-table tbody tr').length"
    state = "return document.querySelector('.pager span').textContent"
    assert (browser.run(count), browser.run(state)) == (100, "page 1 of 100 · 10,000 rows")
    browser.run("document.querySelectorAll('.pager button')[1].click()")
    assert browser.run(state).startswith("page 2 of 100")
    browser.run("document.querySelectorAll('#raw-table .sorter')[6].click()")
    browser.run("const i = document.querySelector('.pager input'); i.value = 'net_9999'; i.dispatchEvent(new Event('input'))")
    wait_for(browser, "return document.querySelectorAll('#raw-table tbody tr').length === 1")
    assert "net_9999" in browser.run("return document.querySelector('#raw-table tbody').textContent")


def test_a_served_page_follows_the_run(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpualloc.report.server._MIN_AGE_S", 0.0)
    rows = study_run()
    shown = [rows[:3]]
    with ReportServer(lambda: inputs_of(shown[0]), language="en") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.requested()
            browser.show(server.address)
            count = "return document.querySelectorAll('#rows tbody tr').length"
            assert browser.run(count) == 3
            browser.run("document.querySelector('details').open = true")
            shown[0] = rows[:6]
            wait_for(browser, f"{count} === 6")
            assert browser.run("return document.querySelector('details').open")
            assert {address.rsplit("/", 1)[0] + "/" for address in browser.requested()} == {server.address}
            assert browser.console() == []
        finally:
            server.stop()
            thread.join()
    wait_for(browser, "return document.getElementById('live').textContent === 'the server has ended'")
    browser.console()


def wait_for(browser: Browser, condition: str, timeout_s: float = 10.0) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, timeout_s, poll_frequency=0.05).until(lambda _: browser.run(condition))
