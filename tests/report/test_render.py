"""The HTML: one file, nothing from outside, everything escaped."""

import re
from html.parser import HTMLParser

import pytest

from gpualloc.report import encode, render
from tests.report.inputs import HOSTILE, hostile_inputs, inputs_of, many_rows, rich_inputs

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, their attributes and the text, with a check that they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def rich() -> str:
    return render(rich_inputs())


def test_nothing_is_loaded_from_anywhere(rich: str) -> None:
    page = Page(rich)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert not {"src", "srcset", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in rich
    assert "@import" not in rich
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_it_is_small_and_has_unique_names(rich: str) -> None:
    assert len(encode(rich)) < 1_000_000
    names = [attributes["id"] for _, attributes in Page(rich).elements if "id" in attributes]
    assert len(names) == len(set(names))
    anchors = {(attributes.get("href") or "")[1:] for tag, attributes in Page(rich).elements if tag == "a"}
    assert anchors <= set(names)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_it_can_be_read_without_seeing_it(language: str) -> None:
    page = Page(render(rich_inputs(), language=language))
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": language}) in page.elements
    assert all(tag in tags for tag in ("main", "header", "nav", "footer"))
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    pictures = [attributes for tag, attributes in page.elements if tag == "svg" and attributes.get("aria-hidden") != "true"]
    assert len(pictures) == 2 * tags.count("figure") > 8
    assert all(attributes.get("role") == "img" and attributes.get("aria-labelledby") for attributes in pictures)
    assert tags.count("details") >= tags.count("figure")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_hostile_names_stay_text(language: str) -> None:
    html = render(hostile_inputs(), language=language)
    encode(html).decode("utf-8")
    assert "<script>window" not in html
    assert "<img" not in html
    page = Page(html)
    assert [tag for tag, _ in page.elements if tag == "script"] == ["script"] * 3
    assert HOSTILE in page.text


def test_hostile_names_do_not_end_the_data_of_many_rows() -> None:
    from dataclasses import replace

    rows = [replace(row, case=replace(row.case, model=f"</script>{HOSTILE}\u2028")) for row in many_rows(300)]
    html = render(inputs_of(rows))
    data = re.findall(r'<script type="application/json" id="raw">(.*?)</script>', html, re.DOTALL)
    assert len(data) == 1
    assert "<" not in data[0]


def test_a_store_without_rows_gives_a_page() -> None:
    for language in ("en", "ja"):
        Page(render(inputs_of([]), language=language))


def test_only_a_served_page_asks_its_server() -> None:
    assert "connect-src" not in render(inputs_of([]))
    assert "connect-src &#39;self&#39;" in render(inputs_of([]), is_live=True)
