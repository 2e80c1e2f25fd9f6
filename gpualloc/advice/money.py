"""What a price book and the options of a command say of this GPU: the rent that costs are counted with, and what buying would save."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpualloc.advice.records import Option, RentOf
from gpualloc.errors import UsageError
from gpualloc.money import BuyOrRent, PriceBook, buy_or_rent
from gpualloc.watching.waste import Price

_MONTHS = 12


def find_rent(
    book: PriceBook, device_name: str, *, is_whole_gpu: bool, given: Price | None, provider: str | None
) -> tuple[RentOf | None, str | None]:
    """(the price of a GPU-hour, None) or (None, why there is none and what to do).

    Args:
        is_whole_gpu: False for CPU ranks and for slices of a GPU, which no price book has.
        given: a price that takes the place of the book's.

    Raises:
        UsageError: a provider that has no price for the GPU.
    """
    if given is not None:
        return RentOf(amount_per_gpu_hour=given.amount_per_hour, currency=given.currency, described="as given", is_example=False), None
    remedy = "give one with --price, such as '2.50 EUR', or in a price book: docs/prices.md"
    if not is_whole_gpu:
        return None, f"no price is known for one rank on {device_name}; {remedy}"
    price = book.rent_of(device_name, provider=provider)
    if price is not None:
        described = f"{price.provider}, {price.date}: {price.source}"
        return RentOf(
            amount_per_gpu_hour=price.price_per_gpu_hour, currency=price.currency, described=described, is_example=price.example
        ), None
    if provider is not None:
        known = ", ".join(book.providers(device_name)) or "none"
        raise UsageError(f"--provider {provider!r} has no price for {device_name}; those that have one: {known}; or {remedy}")
    return None, f"no price is known for {device_name}; {remedy}"


def plan_purchase(
    book: PriceBook,
    device_name: str,
    rent: RentOf | None,
    *,
    num_gpus: int,
    jobs_per_month: float | None,
    gpu_hours_per_month: float | None,
) -> Callable[[Sequence[Option]], BuyOrRent]:
    """What `advise` takes as `buy`: buying that many GPUs against renting them, for a load of jobs or of GPU-hours.

    Raises:
        UsageError: no price of one's own or of renting, or no load; at once or, of jobs, when the options are known.
    """
    owned = book.owned(device_name)
    if owned is None:
        raise UsageError(f"--buy: the price book does not say what a {device_name} costs to buy; add it under own: docs/prices.md")
    if rent is None:
        raise UsageError(f"--buy compares with renting and no price of an hour is known for {device_name}; give --price")
    if (jobs_per_month is None) == (gpu_hours_per_month is None):
        raise UsageError("--buy needs the load: give either --jobs-per-month or --gpu-hours-per-month")
    load = jobs_per_month if jobs_per_month is not None else gpu_hours_per_month
    if load is None or not 0 < load < 1e12:
        raise UsageError(f"a load of {load} a month is out of range; choose a number above 0")

    def buy(options: Sequence[Option]) -> BuyOrRent:
        hours = gpu_hours_per_month
        if jobs_per_month is not None:
            hours = jobs_per_month * _gpu_hours_of_job(options, num_gpus)
        assert hours is not None
        return buy_or_rent(
            owned,
            num_gpus=num_gpus,
            rent_per_gpu_hour=rent.amount_per_gpu_hour,
            currency=rent.currency,
            load_gpu_hours_per_year=_MONTHS * hours,
        )

    return buy


def _gpu_hours_of_job(options: Sequence[Option], num_gpus: int) -> float:
    """On all the GPUs to buy, in the fastest setting that fits."""
    there = [
        option for option in options if option.num_gpus == num_gpus and option.gpu_hours is not None and option.memory.fits is not False
    ]
    if not there:
        if not any(option.gpu_hours is not None for option in options):
            raise UsageError("--jobs-per-month needs the size of a job: add --dataset-size and --epochs, or --steps")
        counts = sorted({option.num_gpus for option in options if option.gpu_hours is not None})
        raise UsageError(
            f"--buy {num_gpus}: nothing is known of the job on {num_gpus} GPUs, but on {', '.join(map(str, counts))}; "
            "choose one of these, measure it, or give --gpu-hours-per-month"
        )
    return min(option.gpu_hours.value for option in there if option.gpu_hours is not None)
