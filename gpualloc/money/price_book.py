"""Prices as data: what a GPU costs to rent by the hour, and what one of your own costs. Every entry has a currency, a source and a date.

The shipped `example_prices.yaml` holds public list prices as examples. Entries of a user's file come before them: the first one that names
a GPU counts. A GPU that no entry names has no price, and none is guessed.
"""

from __future__ import annotations

import datetime
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_yaml
from gpualloc.store.paths import default_store_path

_SHIPPED = Path(__file__).with_name("example_prices.yaml")
_MAX_CURRENCY_LENGTH = 12  # as on the command line
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: _Text  # for people
    names: _Text  # a regular expression for the whole name that CUDA gives
    currency: _Text
    source: _Text
    date: datetime.date  # on which the source said so
    example: bool = False  # shipped with gpualloc, to be replaced by what you pay

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: str) -> str:
        try:
            re.compile(names)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{names!r} is not a regular expression: {error}") from None
        return names

    @field_validator("currency")
    @classmethod
    def _check_currency(cls, currency: str) -> str:
        stripped = currency.strip()
        if not stripped or len(stripped) > _MAX_CURRENCY_LENGTH or not stripped.isprintable() or any(map(str.isdigit, stripped)):
            raise ValueError(f"{currency!r} is no currency; write EUR, USD or the like")
        return stripped

    def is_for(self, device_name: str) -> bool:
        return re.fullmatch(self.names, device_name) is not None


class RentPrice(_Entry):
    """What a provider asks for one GPU and hour, its share of the machine included."""

    provider: _Text
    price_per_gpu_hour: _Positive


class OwnedGpu(_Entry):
    """What a GPU of one's own costs, its share of the server included."""

    purchase_price_per_gpu: _Positive
    lifetime_years: _Positive  # after which it is worth nothing
    power_w_per_gpu: _Positive  # of the server, cooling included, while it trains; it is taken to draw none while idle
    power_price_per_kwh: _NotNegative
    utilisation: Annotated[float, Field(gt=0, le=1)]  # the largest share of all hours in which it can train
    upkeep_per_gpu_year: _NotNegative = 0.0  # hosting, staff, support: whatever does not depend on its hours

    @property
    def power_cost_per_hour(self) -> float:
        """In `currency`, for one GPU that trains."""
        return self.power_w_per_gpu / 1000 * self.power_price_per_kwh


class PriceBook(BaseModel):
    """Entries in the order in which they are looked up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rent: tuple[RentPrice, ...] = ()
    own: tuple[OwnedGpu, ...] = ()

    def rent_of(self, device_name: str, *, provider: str | None = None) -> RentPrice | None:
        """The first price for the GPU with this name, of that provider where one is named; None: unknown."""
        asked = None if provider is None else provider.casefold()
        return next((price for price in self.rent if price.is_for(device_name) and asked in (None, price.provider.casefold())), None)

    def owned(self, device_name: str) -> OwnedGpu | None:
        """The first entry for a GPU of this name; None: unknown."""
        return next((entry for entry in self.own if entry.is_for(device_name)), None)

    def providers(self, device_name: str) -> list[str]:
        """Those with a price for the GPU."""
        return list(dict.fromkeys(price.provider for price in self.rent if price.is_for(device_name)))


def user_price_file() -> Path:
    """The file that is read where none is named: prices.yaml beside the results."""
    return default_store_path().with_name("prices.yaml")


def load_price_book(file: Path | None = None) -> PriceBook:
    """The entries of the file, or of `user_price_file` where it exists, then the shipped examples.

    Raises:
        UsageError: the file cannot be read or an entry cannot be meant; names the file, the entry and what is allowed.
    """
    if file is None and user_price_file().is_file():
        file = user_price_file()
    shipped = _read(_SHIPPED)
    if file is None:
        return shipped
    own = _read(file)
    return PriceBook(rent=(*own.rent, *shipped.rent), own=(*own.own, *shipped.own))


@cache
def _read(file: Path) -> PriceBook:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the price book {file} cannot be read: {error}; give a text file that can") from error
    try:
        data = from_yaml(text)
    except ValueError as error:
        raise UsageError(f"{file} is not YAML: {error}; docs/prices.md has the form") from error
    try:
        return PriceBook.model_validate({} if data is None else data)
    except ValidationError as error:
        raise UsageError(f"{file}: {_describe(error)}; docs/prices.md has the form") from error


def _describe(error: ValidationError) -> str:
    """The first fault, with the entry it is in."""
    fault: Any = error.errors()[0]
    place = [f"{part + 1}" if isinstance(part, int) else str(part) for part in fault["loc"]]
    where = f"entry {place[1]} of {place[0]}, {'.'.join(place[2:])}" if len(place) > 2 else " ".join(place) or "the file"
    if fault["type"] == "missing":
        return f"{where} is missing"
    if fault["type"] == "extra_forbidden":
        entry: Any = {"rent": RentPrice, "own": OwnedGpu}.get(place[0], PriceBook)
        return f"{where} is unknown; choose one of {', '.join(entry.model_fields)}"
    seen = "" if isinstance(fault["input"], (dict, list)) else f" is {fault['input']!r}"
    return f"{where}{seen}: {str(fault['msg']).removeprefix('Value error, ')}"
