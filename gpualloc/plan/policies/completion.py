"""gpualloc's own policy: shortest completion times for jobs that scale, on GPUs that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpualloc.plan.assignment import clear_market
from gpualloc.plan.choices import Choices, choices_of, keep_fixed
from gpualloc.plan.placement import place
from gpualloc.plan.policies.sia import restart_discount
from gpualloc.plan.protocol import Allocation, ClusterView, JobView, Plan


@dataclass(frozen=True, kw_only=True)
class Completion:
    name: str = "gpualloc"
    horizon_s: float = 900.0
    floor: float = 0.5
    tau_s: float = 3600.0
    rounds: int = 5
    mode: str = "tau"
    discount: str = "both"
    k: float = 1.0
    exact: bool = False
    hr: float = 0.0
    conc: float = 1.0

    def allocate(self, now_s: float, jobs: Sequence[JobView], cluster: ClusterView, current: Plan) -> dict[str, Allocation]:
        choices = choices_of(jobs, cluster, current)
        chosen = self.choose(choices)
        return place(choices, chosen, cluster, current)

    def choose(self, choices: Choices):
        rates = choices.rates
        left = choices.attribute("progress_left")
        done = choices.attribute("progress_done")
        left = np.maximum(left, 0.05 * done)
        base = choices.base_rates()
        speed = rates / base[:, None]
        work = left / base
        w = choices.attribute("weight")
        g = choices.num_gpus
        restart = choices.attribute("restart_cost_s")[:, None] * ~choices.is_held() * (choices.held >= 0)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            need = np.where(speed > 0, work[:, None] / speed, np.inf)
            inv = np.where(speed > 0, 1 / speed, np.inf)
        span = np.minimum(need + restart, np.maximum(self.horizon_s, self.hr * restart))
        useful = np.maximum(span - self.k * restart, 0.0) / span
        if self.discount == "sia":
            useful = np.where(choices.is_held(), 1.0, restart_discount(choices)[:, None])
        elif self.discount == "both":
            useful = np.minimum(useful, np.where(choices.is_held(), 1.0, restart_discount(choices)[:, None]))
        eff = speed * useful
        J = len(w)
        rows = np.arange(J)

        def values_at(lam):
            price = lam[choices.type_of] * g
            c = ((w[:, None] + price[None, :]) * inv).argmin(axis=1)
            T = need[rows, c]
            if self.mode == "tau":
                x = T / self.tau_s
                f = self.floor + (1 - self.floor) * (-np.expm1(-x)) / np.maximum(x, 1e-9)
            else:
                order = np.argsort(T, kind="stable")
                Ts = T[order]
                n = J - rows
                seg = np.diff(np.concatenate([[0.0], Ts])) * n
                avg = np.cumsum(seg) / np.maximum(Ts, 1e-9) / J
                f = np.empty(J)
                f[order] = self.floor + (1 - self.floor) * avg
            m = ((w[:, None] + f[:, None] * price[None, :]) * inv).min(axis=1)
            return keep_fixed((eff if self.conc == 1 else eff) * np.where(np.isfinite(m), m, 0)[:, None], choices)

        if self.exact:
            from gpualloc.plan import assignment
            seen = []
            def spy(lam):
                v = values_at(lam); seen.append(v); return v
            clear_market(spy, choices.type_of, choices.num_gpus, choices.capacity, np.full(len(choices.capacity), w.sum() / choices.capacity.sum()))
            return assignment.solve_exactly(seen[-1], choices.type_of, choices.num_gpus, choices.capacity)
        return clear_market(values_at, choices.type_of, choices.num_gpus, choices.capacity, np.full(len(choices.capacity), w.sum() / choices.capacity.sum()))
