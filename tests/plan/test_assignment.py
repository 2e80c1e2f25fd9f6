"""Prices and what they leave open, against the integer program."""

from __future__ import annotations

import numpy as np
import pytest

from gpualloc.plan.assignment import solve_by_prices, solve_exactly, solve_greedily

TYPE_OF = np.array([0, 0, 0, 1, 1, 1, 1])
NUM_GPUS = np.array([1, 2, 4, 1, 2, 4, 8])
CAPACITY = np.array([8, 16])


def made_values(num_jobs: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    exponent, fast = rng.uniform(0.3, 0.95, (num_jobs, 1)), rng.uniform(0.8, 5, (num_jobs, 1))
    return rng.uniform(0.5, 3, (num_jobs, 1)) * NUM_GPUS**exponent * np.where(TYPE_OF == 1, fast, 1.0)


def worth(values: np.ndarray, chosen: np.ndarray) -> float:
    used = np.bincount(TYPE_OF[chosen[chosen >= 0]], weights=NUM_GPUS[chosen[chosen >= 0]], minlength=2)
    assert (used <= CAPACITY).all()
    return float(values[np.arange(len(values)), chosen][chosen >= 0].sum())


@pytest.mark.parametrize("num_jobs", [1, 5, 20, 60])
def test_prices_reach_the_integer_program(num_jobs: int) -> None:
    for seed in range(5):
        values = made_values(num_jobs, seed)
        best = worth(values, solve_exactly(values, TYPE_OF, NUM_GPUS, CAPACITY))
        assert worth(values, solve_by_prices(values, TYPE_OF, NUM_GPUS, CAPACITY)) >= best * 0.999


def test_greedy_stays_behind_but_within_bounds() -> None:
    values = made_values(20, 1)
    best = worth(values, solve_exactly(values, TYPE_OF, NUM_GPUS, CAPACITY))
    assert 0.8 * best < worth(values, solve_greedily(values, TYPE_OF, NUM_GPUS, CAPACITY)) <= best * (1 + 1e-9)


def test_a_known_optimum() -> None:
    """Two jobs, 2 GPUs: one each is worth 10 + 10, both to one only 15."""
    values = np.array([[10.0, 15.0], [10.0, 15.0]])
    kinds, counts, capacity = np.array([0, 0]), np.array([1, 2]), np.array([2])
    for solve in (solve_exactly, solve_by_prices, solve_greedily):
        assert solve(values, kinds, counts, capacity).tolist() == [0, 0]


@pytest.mark.parametrize("solve", [solve_exactly, solve_by_prices, solve_greedily])
def test_what_has_no_value_is_not_taken(solve: object) -> None:
    values = np.array([[0.0, -1.0], [np.nan, np.inf], [-np.inf, 0.0]])
    assert solve(values, np.array([0, 0]), np.array([1, 2]), np.array([9])).tolist() == [-1, -1, -1]  # type: ignore[operator]
    empty = solve(np.zeros((0, 2)), np.array([0, 0]), np.array([1, 2]), np.array([9]))  # type: ignore[operator]
    assert empty.tolist() == []
