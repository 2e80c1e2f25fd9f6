"""Pay-back and turning points against figures worked out by hand, and what must hold for any prices."""

import datetime
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpualloc.errors import UsageError
from gpualloc.money import BuyOrRent, OwnedGpu, buy_or_rent


def owned(**changes: Any) -> OwnedGpu:
    entry = {
        "gpu": "H100",
        "names": "NVIDIA H100.*",
        "currency": "EUR",
        "source": "an offer",
        "date": datetime.date(2026, 11, 1),
        "purchase_price_per_gpu": 20_000.0,
        "lifetime_years": 4.0,
        "power_w_per_gpu": 1000.0,
        "power_price_per_kwh": 0.2,
        "utilisation": 0.5,
    }
    return OwnedGpu(**{**entry, **changes})


def compare(load: float, rent: float = 2.2, num_gpus: int = 2, **changes: Any) -> BuyOrRent:
    return buy_or_rent(owned(**changes), num_gpus=num_gpus, rent_per_gpu_hour=rent, currency="EUR", load_gpu_hours_per_year=load)


def turn(found: BuyOrRent, name: str) -> float | None:
    return next(point.turns_at for point in found.turning_points if point.name == name)


def test_by_hand() -> None:
    """2 GPUs of 20,000 EUR that save 2.20 - 0.20 EUR an hour: 10,000 hours a year save 20,000, which is half of the price."""
    found = compare(load=8000, utilisation=1.0)
    assert found.saving_per_year == pytest.approx(16_000)
    assert (found.purchase_price, found.payback_years) == (40_000, pytest.approx(2.5))
    assert found.return_on_investment == pytest.approx((4 * 16_000 - 40_000) / 40_000)
    assert (found.rent_cost_per_year, found.own_cost_per_year) == (pytest.approx(17_600), pytest.approx(1_600))
    assert found.cost_per_owned_gpu_hour == pytest.approx(10_000 / 8000 + 0.2)
    assert found.answer == "buy"
    assert turn(found, "load") == pytest.approx(5000)  # 10,000 a year / 2.00
    assert turn(found, "rent") == pytest.approx(1.45)
    assert turn(found, "purchase price") == pytest.approx(32_000)
    assert turn(found, "power price") == pytest.approx(2.2 - 1.25)
    assert turn(found, "lifetime") == pytest.approx(2.5)


def test_what_is_beyond_the_bought_gpus_is_rented_either_way() -> None:
    found = compare(load=20_000)
    assert found.owned_gpu_hours_per_year == 8760  # 2 GPUs x 8760 h x 0.5
    assert found.rented_gpu_hours_per_year == 20_000 - 8760
    assert found.saving_per_year == pytest.approx(8760 * 2.0)
    assert turn(found, "load") == pytest.approx(5000)


def test_buying_that_never_pays() -> None:
    dear_power = compare(load=8000, power_price_per_kwh=3.0)
    assert dear_power.payback_years is None
    assert dear_power.answer == "rent"
    assert turn(dear_power, "load") is None  # each hour costs more than renting it
    idle = compare(load=0)
    assert (idle.payback_years, idle.cost_per_owned_gpu_hour, turn(idle, "rent")) == (None, None, None)
    assert idle.return_on_investment == -1
    assert turn(compare(load=8000, utilisation=0.1), "load") is None  # 1,752 hours are not enough


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rent_per_gpu_hour": 0}, "a rent of 0 per GPU-hour is out of range"),
        ({"rent_per_gpu_hour": -1}, "out of range"),
        ({"rent_per_gpu_hour": float("nan")}, "out of range"),
        ({"load_gpu_hours_per_year": -1}, "a load of -1"),
        ({"num_gpus": 0}, "0 GPUs to buy"),
        ({"currency": "USD"}, "the rent is in USD and the purchase price of H100 in EUR"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    given_values = {"num_gpus": 1, "rent_per_gpu_hour": 2.0, "currency": "EUR", "load_gpu_hours_per_year": 1000.0, **changes}
    with pytest.raises(UsageError, match=message):
        buy_or_rent(owned(), **given_values)


prices = st.floats(0.1, 20)
loads = st.floats(1, 50_000)
purchases = st.floats(1000, 60_000)


@settings(max_examples=25, deadline=None)
@given(rent=prices, load=loads, more=st.floats(1.01, 5), price=purchases, num_gpus=st.integers(1, 16))
def test_payback_falls_with_the_load_and_the_rent_and_rises_with_the_price(
    rent: float, load: float, more: float, price: float, num_gpus: int
) -> None:
    def payback(**changes: float) -> float:
        figures = {"load": load, "rent": rent, "num_gpus": num_gpus, "purchase_price_per_gpu": price, **changes}
        years = compare(**figures).payback_years  # type: ignore[arg-type]
        return float("inf") if years is None else years

    assert payback(load=load * more) <= payback()
    assert payback(rent=rent * more) <= payback()
    assert payback(purchase_price_per_gpu=price * more) >= payback()


@settings(max_examples=25, deadline=None)
@given(rent=prices, load=loads, price=purchases, upkeep=st.floats(0, 3000), num_gpus=st.integers(1, 8))
def test_at_a_turning_point_buying_and_renting_cost_the_same(rent: float, load: float, price: float, upkeep: float, num_gpus: int) -> None:
    figures: dict[str, Any] = {
        "load": load,
        "rent": rent,
        "num_gpus": num_gpus,
        "purchase_price_per_gpu": price,
        "upkeep_per_gpu_year": upkeep,
    }
    argument = {
        "rent": "rent",
        "load": "load",
        "purchase price": "purchase_price_per_gpu",
        "power price": "power_price_per_kwh",
        "lifetime": "lifetime_years",
    }
    found = compare(**figures)
    assume(found.turning_points)
    for point in found.turning_points:
        if point.turns_at is None:
            continue
        there = compare(**{**figures, argument[point.name]: point.turns_at})
        assert there.return_on_investment == pytest.approx(0, abs=1e-6)
        beyond = point.turns_at * (1.1 if point.buy_when == "above" else 0.9)
        assert compare(**{**figures, argument[point.name]: beyond}).return_on_investment >= -1e-6
