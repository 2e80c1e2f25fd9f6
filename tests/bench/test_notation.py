"""The grid language."""

from __future__ import annotations

import pytest

from gpualloc.bench.notation import NOTATIONS, parse_gpu_counts, parse_numbers, parse_options, parse_switches, resolve_gpu_counts
from gpualloc.errors import UsageError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("100", (100,)),
        (" 1, 2", (1, 2)),
        ("100..500:100", (100, 200, 300, 400, 500)),
        ("1..4", (1, 2, 3, 4)),
        ("0,4..8:3", (0, 4, 7)),
        ("5..5", (5,)),
        ("-5", (-5,)),  # what is allowed is said later
    ],
)
def test_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers("--image-size", text) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,,2", "has an empty entry"),
        ("", "has an empty entry"),
        ("ten", "is not a list of whole numbers; give for example --x 1,2 or the range --x 2..8:2"),
        ("1.5", "is not a list of whole numbers"),
        ("100-500:100", "is not a list of whole numbers"),
        ("5..2", "--x 5..2 is not a range; write FIRST..LAST"),
        ("1..9:0", "STEP 1 or more"),
        ("1..1000000000", "is not a range"),
        ("1..all", "is not a list of whole numbers"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_numbers("--x", text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "num_gpus", "counts"),
    [("all", 4, (4,)), ("1..all", 3, (1, 2, 3)), ("2..all:2,1", 6, (2, 4, 6, 1)), ("1..2", 8, (1, 2)), ("1,all", 1, (1,))],
)
def test_numbers_of_gpus_wait_for_the_machine(text: str, num_gpus: int, counts: tuple[int, ...]) -> None:
    assert resolve_gpu_counts(parse_gpu_counts("--gpus", text), num_gpus) == counts


def test_switches() -> None:
    assert parse_switches("--compile", "on,off") == (True, False)
    with pytest.raises(UsageError, match="--compile 'true' is unknown; choose on, off or on,off"):
        parse_switches("--compile", "true")


def test_options_are_read_from_text_numbers_switches_and_lists_alike() -> None:
    written = {"image_size": [100, "200..300:100"], "pin_memory": [True, False], "steps": 3, "data": "a,b", "seed": None}
    assert parse_options(written) == {"image_sizes_px": (100, 200, 300), "pin_memory": (True, False), "num_steps": 3, "data": "a,b"}


def test_each_option_has_a_field_of_its_own() -> None:
    fields = [notation.field for notation in NOTATIONS.values()]
    assert len(set(fields)) == len(fields)
