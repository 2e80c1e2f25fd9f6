"""The catalogues of sentences: both languages say the same, and all that is said is used."""

import re
from pathlib import Path
from string import Formatter

import gpualloc.report
from gpualloc.report.words import LANGUAGES, Words, catalogue

_PACKAGE = Path(gpualloc.report.__file__).parent
_SOURCES = "\n".join(path.read_text() for pattern in ("*.py", "templates/*.j2", "charts/*.py") for path in _PACKAGE.glob(pattern))


def fields(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


def test_both_languages_have_the_same_sentences_with_the_same_figures() -> None:
    english, japanese = catalogue("en"), catalogue("ja")
    assert LANGUAGES == ("en", "ja")
    assert list(english) == list(japanese)
    # A figure that Japanese leaves out would be lost; the figures' order may differ.
    assert {key: fields(text) for key, text in english.items()} == {key: fields(text) for key, text in japanese.items()}
    assert all(text.strip() for text in (*english.values(), *japanese.values()))


def test_japanese_is_japanese() -> None:
    same = {key for key, text in catalogue("ja").items() if text == catalogue("en")[key]}
    spelt_alike = {key for key in same if not re.search("[a-z]{4}", re.sub(r"\{\w+\}|torch|gpualloc", "", catalogue("ja")[key]))}
    assert same - spelt_alike <= {"env.cuda_version", "env.python_version", "raw.ci", "profile.evidence"}


def test_every_sentence_that_is_named_exists_and_every_one_is_named() -> None:
    literal = set(re.findall(r'(?:words|w)\(["\']([\w.]+)["\']', _SOURCES))
    assert literal <= set(catalogue("en"))
    groups = set(re.findall(r'words\.name\("(\w+)"', _SOURCES))
    patterns = [
        re.escape(re.sub(r"\{[^}]*\}", "\0", text)).replace("\0", ".+") for text in re.findall(r'(?:words|w|self)\(\s*f"([^"]+)"', _SOURCES)
    ]
    branches = set(re.findall(r'"([a-z]\w*(?:\.\w+)+)"', _SOURCES))
    unused = [
        key
        for key in catalogue("en")
        if key not in literal | branches and key.split(".")[0] not in groups and not any(re.fullmatch(each, key) for each in patterns)
    ]
    assert unused == []


def test_counts_and_names() -> None:
    words = Words("en")
    assert (words.devices(1, "gpu"), words.devices(4, "gpu"), words.devices(2, "rank")) == ("1 GPU", "4 GPUs", "2 ranks")
    assert words.name("verdict", "does not pay") == "does not pay"
    assert Words("ja").name("verdict", "does not pay") == "割に合わない"
    assert words.name("verdict", "{of} another version") == "{of} another version"
