"""Independent random streams from one seed, none of them the global one."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, rank: int = 0) -> int:
    """A seed in [0, 2**62) that depends on all three arguments; the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{rank}".encode()).digest()[:8], "big") >> 2


def make_generator(seed: int, purpose: str, rank: int = 0) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, rank))
