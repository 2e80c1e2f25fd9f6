"""Whether to buy K GPUs or to rent them, for a yearly load of GPU-hours; and which price or load would turn the answer.

    hours        H = min(load, K * 8760 * utilisation)            of the bought GPUs; what is beyond is rented either way
    saving       S = H * (rent - power) - K * upkeep              a year
    pay-back       = K * purchase / S                             years; never where S <= 0
    return       R = (S * lifetime - K * purchase) / (K * purchase)   on the investment, over the lifetime

Buying pays where R > 0. R = 0 is linear in every price and in H, so that the turning points are solved exactly. No interest is counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpualloc.errors import UsageError
from gpualloc.money.price_book import OwnedGpu

HOURS_PER_YEAR = 8760  # 365 days


@dataclass(frozen=True, kw_only=True)
class TurningPoint:
    """A figure, and the value at which buying and renting cost the same, everything else being as it is."""

    name: str  # "rent", "load", "purchase price", "power price", "lifetime"
    unit: str
    now: float
    turns_at: float | None  # None: no value turns the answer
    buy_when: Literal["above", "below"]  # the side on which buying pays


@dataclass(frozen=True, kw_only=True)
class BuyOrRent:
    """The answer for one number of GPUs. Money is in `currency`."""

    num_gpus: int
    currency: str
    load_gpu_hours_per_year: float
    owned_gpu_hours_per_year: float  # of the load, on the bought GPUs
    rented_gpu_hours_per_year: float  # the rest, beyond what they can do
    rent_per_gpu_hour: float
    purchase_price: float
    rent_cost_per_year: float  # all of it rented
    own_cost_per_year: float  # power, upkeep and what is still rented; without the purchase
    saving_per_year: float
    payback_years: float | None  # None: never
    lifetime_years: float
    return_on_investment: float  # over the lifetime, as a fraction
    cost_per_owned_gpu_hour: float | None  # the purchase included; None without load
    answer: Literal["buy", "rent"]
    turning_points: tuple[TurningPoint, ...]


def buy_or_rent(owned: OwnedGpu, *, num_gpus: int, rent_per_gpu_hour: float, currency: str, load_gpu_hours_per_year: float) -> BuyOrRent:
    """Buying `num_gpus` against renting them for the load.

    Args:
        owned: what a bought GPU costs.
        rent_per_gpu_hour: of the same kind of GPU.
        currency: of the rent.
        load_gpu_hours_per_year: of the jobs to be run.

    Raises:
        UsageError: a number that cannot be meant, or two currencies.
    """
    if num_gpus < 1:
        raise UsageError(f"{num_gpus} GPUs to buy is out of range; choose 1 or more")
    if not 0 < rent_per_gpu_hour < math.inf:
        raise UsageError(f"a rent of {rent_per_gpu_hour:g} per GPU-hour is out of range; choose an amount above 0")
    if not 0 <= load_gpu_hours_per_year < math.inf:
        raise UsageError(f"a load of {load_gpu_hours_per_year:g} GPU-hours a year is out of range; choose 0 or more")
    if owned.currency != currency:
        raise UsageError(
            f"the rent is in {currency} and the purchase price of {owned.gpu} in {owned.currency}; give both in one: docs/prices.md"
        )
    capacity = num_gpus * HOURS_PER_YEAR * owned.utilisation
    hours = min(load_gpu_hours_per_year, capacity)
    power = owned.power_cost_per_hour
    purchase, upkeep = num_gpus * owned.purchase_price_per_gpu, num_gpus * owned.upkeep_per_gpu_year
    saving = hours * (rent_per_gpu_hour - power) - upkeep
    return_on_investment = (saving * owned.lifetime_years - purchase) / purchase
    rented_hours = load_gpu_hours_per_year - hours
    return BuyOrRent(
        num_gpus=num_gpus,
        currency=currency,
        load_gpu_hours_per_year=load_gpu_hours_per_year,
        owned_gpu_hours_per_year=hours,
        rented_gpu_hours_per_year=rented_hours,
        rent_per_gpu_hour=rent_per_gpu_hour,
        purchase_price=purchase,
        rent_cost_per_year=load_gpu_hours_per_year * rent_per_gpu_hour,
        own_cost_per_year=hours * power + upkeep + rented_hours * rent_per_gpu_hour,
        saving_per_year=saving,
        payback_years=purchase / saving if saving > 0 else None,
        lifetime_years=owned.lifetime_years,
        return_on_investment=return_on_investment,
        cost_per_owned_gpu_hour=(purchase / owned.lifetime_years + upkeep) / hours + power if hours > 0 else None,
        answer="buy" if return_on_investment > 0 else "rent",
        turning_points=_turning_points(owned, num_gpus, rent_per_gpu_hour, load_gpu_hours_per_year, capacity),
    )


def _turning_points(owned: OwnedGpu, num_gpus: int, rent: float, load: float, capacity: float) -> tuple[TurningPoint, ...]:
    """Solutions of S * lifetime = K * purchase, one for each figure."""
    hours, power = min(load, capacity), owned.power_cost_per_hour
    price, upkeep, lifetime = owned.purchase_price_per_gpu, owned.upkeep_per_gpu_year, owned.lifetime_years
    fixed = num_gpus * (price / lifetime + upkeep)  # a year
    saving = hours * (rent - power) - num_gpus * upkeep
    turning_load = fixed / (rent - power) if rent > power else None
    kilowatts = owned.power_w_per_gpu / 1000

    def point(name: str, unit: str, now: float, at: float | None, buy_when: Literal["above", "below"]) -> TurningPoint:
        return TurningPoint(name=name, unit=unit, now=now, turns_at=at if at is not None and at > 0 else None, buy_when=buy_when)

    return (
        point("rent", "per GPU-hour", rent, fixed / hours + power if hours > 0 else None, "above"),
        point("load", "GPU-hours a year", load, turning_load if turning_load is not None and turning_load <= capacity else None, "above"),
        point("purchase price", "per GPU", price, lifetime * saving / num_gpus, "below"),
        point("power price", "per kWh", owned.power_price_per_kwh, (rent - fixed / hours) / kilowatts if hours > 0 else None, "below"),
        point("lifetime", "years", lifetime, num_gpus * price / saving if saving > 0 else None, "above"),
    )
