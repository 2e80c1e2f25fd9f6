"""Any bytes: a file is read, or refused with an error of ours, in no time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpualloc import plain_data
from tests.fuzz.parsers import PARSERS

MANY = int(os.environ.get("GPUALLOC_FUZZ_EXAMPLES", "0"))  # of each reader; 0: a few
_TOKENS = (
    b"\n",
    b":",
    b"- ",
    b'"',
    b"'",
    b",",
    b"\x00",
    b"\xff",
    b"1e999",
    b"-1",
    b"0",
    b"null",
    b"nan",
    b"[",
    b"{",
    b"}",
    b"&a",
    b"*a",
    b"!!int ",
    b"\xe2\x80\xae",
)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A file that is read, with pieces left out, doubled, swapped for others or put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from((0, 1, 2, 5, 20, 100))))
        piece = draw(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=4), st.just(data[begin:end] * 2), st.just(b"")))
        data = data[:begin] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_the_reader_takes_its_own_file_and_survives_odd_ones(name: str, tmp_path: Path) -> None:
    taken = [PARSERS[name].run(seed, tmp_path) for seed in PARSERS[name].seeds()]
    assert taken[0], "the first seed is a sound file"


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    @settings(max_examples=MANY or 8, deadline=None, derandomize=not MANY, suppress_health_check=[HealthCheck.too_slow])
    @given(data=damaged([seed for seed in PARSERS[name].seeds() if len(seed) < 20_000]))
    def reads_or_refuses(data: bytes) -> None:
        PARSERS[name].run(data, tmp_path)

    reads_or_refuses()


BILLION = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("name", [name for name, reader in PARSERS.items() if reader.suffix == ".yaml"])
def test_aliases_of_aliases_are_refused(name: str, tmp_path: Path) -> None:
    assert not PARSERS[name].run(BILLION.encode(), tmp_path)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (plain_data.from_yaml, BILLION, "more than 500,000 values"),
        (plain_data.from_yaml, "&a [*a]", "nested too deeply"),
        (plain_data.from_yaml, "a: 2026-13-45", "month must be in 1..12"),
        (plain_data.from_yaml, "a: !!int ''", "a value cannot be read"),
        (plain_data.from_yaml, "0x" + "f" * 9000, "thousands of digits"),
        (plain_data.from_yaml, "[" * 500, "nested too deeply"),
        (plain_data.from_json, "[" * 100_000, "nested too deeply"),
        (plain_data.from_toml, "a = " + "[" * 3000, "nested too deeply"),
        (plain_data.from_toml, ".".join("a" * 500) + " = 1", "nested too deeply"),
    ],
)
def test_texts_that_parsers_stumble_over(read: object, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(text)  # type: ignore[operator]
