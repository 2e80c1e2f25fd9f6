from pathlib import Path

import pytest

from gpualloc.errors import UsageError
from gpualloc.money import load_price_book

ENTRY = {
    "gpu": "T4",
    "names": '"(NVIDIA |Tesla )T4"',
    "provider": "ours",
    "price_per_gpu_hour": "0.50",
    "currency": "EUR",
    "source": "our contract",
    "date": "2026-11-01",
}


def book_file(folder: Path, kind: str = "rent", **changes: str | None) -> Path:
    file = folder / f"prices_{abs(hash(str(changes)))}.yaml"
    entry = {name: value for name, value in {**ENTRY, **changes}.items() if value is not None}
    file.write_text(f"{kind}:\n  - " + "\n    ".join(f"{name}: {value}" for name, value in entry.items()) + "\n")
    return file


def test_every_shipped_price_is_an_example_with_source_date_and_currency() -> None:
    book = load_price_book()
    entries = [*book.rent, *book.own]
    assert len(entries) >= 10
    assert all(entry.example and entry.source and entry.currency == "USD" and entry.date.year >= 2024 for entry in entries)


def test_an_unknown_gpu_has_no_price() -> None:
    book = load_price_book()
    assert book.rent_of("NVIDIA GeForce RTX 9090") is None
    assert book.owned("NVIDIA GeForce RTX 9090") is None
    assert book.rent_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None  # a slice is not the GPU


def test_the_users_entries_come_first_and_the_default_file_is_beside_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "results.sqlite"))
    book_file(tmp_path, names="NVIDIA H200").rename(tmp_path / "prices.yaml")
    book = load_price_book()
    first = book.rent_of("NVIDIA H200")
    assert first is not None
    assert (first.price_per_gpu_hour, first.currency, first.example) == (0.5, "EUR", False)
    assert book.providers("NVIDIA H200") == ["ours", "Akash", "Google Cloud"]
    akash = book.rent_of("NVIDIA H200", provider="akash")
    assert akash is not None
    assert akash.price_per_gpu_hour == 4.45


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price_per_gpu_hour": "0"}, "entry 1 of rent, price_per_gpu_hour is 0: Input should be greater than 0"),
        ({"price_per_gpu_hour": "-2.5"}, "entry 1 of rent, price_per_gpu_hour is -2.5: Input should be greater than 0"),
        ({"price_per_gpu_hour": ".nan"}, "price_per_gpu_hour is nan"),
        ({"price_per_gpu_hour": ".inf"}, "price_per_gpu_hour is inf"),
        ({"price_per_gpu_hour": "2.50 EUR"}, "price_per_gpu_hour is '2.50 EUR'"),
        ({"currency": None}, "entry 1 of rent, currency is missing"),
        ({"currency": '" "'}, "is no currency; write EUR, USD or the like"),
        ({"source": None}, "entry 1 of rent, source is missing"),
        ({"date": "last week"}, "entry 1 of rent, date is 'last week'"),
        ({"names": '"("'}, "is not a regular expression"),
        ({"prise": "1"}, "entry 1 of rent, prise is unknown; choose one of gpu, names, currency, source, date, example, provider"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_named(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    file = book_file(tmp_path, **changes)
    with pytest.raises(UsageError) as caught:
        load_price_book(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_is_no_price_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"entry 1 of own, lifetime_years is missing|purchase_price_per_gpu is missing"):
        load_price_book(book_file(tmp_path, kind="own", provider=None, price_per_gpu_hour=None))
    with pytest.raises(UsageError, match="lend is unknown; choose one of rent, own"):
        load_price_book(book_file(tmp_path, kind="lend"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("rent: [")
    with pytest.raises(UsageError, match="is not YAML"):
        load_price_book(broken)
    with pytest.raises(UsageError, match="cannot be read"):
        load_price_book(tmp_path / "none.yaml")
