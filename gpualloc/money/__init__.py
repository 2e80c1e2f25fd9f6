"""What GPUs cost: rented by the hour, or bought. Pure arithmetic over a price book; nothing here knows a training job."""

from gpualloc.money.buy_or_rent import BuyOrRent, TurningPoint, buy_or_rent
from gpualloc.money.price_book import OwnedGpu, PriceBook, RentPrice, load_price_book, user_price_file

__all__ = [
    "BuyOrRent",
    "OwnedGpu",
    "PriceBook",
    "RentPrice",
    "TurningPoint",
    "buy_or_rent",
    "load_price_book",
    "user_price_file",
]
