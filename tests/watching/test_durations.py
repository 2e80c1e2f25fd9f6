from __future__ import annotations

import pytest

from gpualloc.errors import UsageError
from gpualloc.watching.durations import duration_text, parse_duration_s, parse_price


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("500ms", 0.5),
        ("10m", 600.0),
        ("10min", 600.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("1h 30m", 5400.0),
    ],
)
def test_a_duration_has_its_unit(text: str, seconds: float) -> None:
    assert parse_duration_s("--for", text) == seconds


@pytest.mark.parametrize("text", ["5", "", "s", "-5s", "0s", "5 parsecs", "1e400s", "nan", "99999999999d", "5s;", "²s"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"--for .*(write a number with its unit: 500ms|choose 1ms or more)"):
        parse_duration_s("--for", text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "250ms"),
        (5, "5s"),
        (4.01, "4.01s"),
        (60, "1m"),
        (330, "5m30s"),
        (599.9, "10m"),
        (3600, "1h"),
        (5400, "1h30m"),
        (86400, "24h"),
        (190_000, "2d4h"),
    ],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [("2.50 EUR", 2.5, "EUR"), ("2.5EUR", 2.5, "EUR"), ("$3", 3.0, "$"), ("USD 0.99", 0.99, "USD"), (" 4 credits ", 4.0, "credits")],
)
def test_a_price_is_an_amount_and_a_currency(text: str, amount: float, currency: str) -> None:
    price = parse_price("--price-per-hour", text)
    assert (price.amount_per_hour, price.currency) == (amount, currency)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2.5", "has no currency; write it behind the amount: '2.5 EUR'"),
        ("0 EUR", "choose an amount above 0"),
        ("-1 EUR", "choose an amount above 0"),
        ("EUR", "is no price"),
        ("", "is no price"),
        ("1 EUR 2", "is no price"),
        ("$1 EUR", "is no price"),
        ("inf EUR", "is no price"),
        ("2 a-very-long-currency", "more than 12"),
        ("2 \x1b[31m", "is no price|printable"),
    ],
)
def test_other_prices_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_price("--price-per-hour", text)
