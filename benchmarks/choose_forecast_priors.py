"""How well the forecast's priors do on a cluster that they were not chosen on.

    python benchmarks/choose_forecast_priors.py --data DIR [--out benchmarks/results/forecast_out_of_sample_<date>.json]

For each cluster of DIR, the candidate that does best on the other clusters is scored on this one. A candidate's score is the mean over the
splits S1 to S4 of its median error over the bar: half of the error of Pollux's model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare_forecast import run_ours
from gpualloc.scaling.csv_rows import read_rows
from gpualloc.scaling.priors import Priors

FIGURES = ("median_ape", "p90_ape", "decision", "decision_measured_one", "coverage")
BARS = {"S1": 0.15, "S2": 0.12, "S3": 0.12, "S4": 0.046}
CANDIDATES: dict[str, dict[str, float]] = {
    "as shipped": {},
    "bytes do not tell": {"launch_bound_gb_per_s": 1e-9},
    "launch bound from 1 GB/s": {"launch_bound_gb_per_s": 1.0},
    "launch bound from 4 GB/s": {"launch_bound_gb_per_s": 4.0},
    "jobs differ twice as much in contention": {"contention": 0.08},
    "jobs differ half as much in contention": {"contention": 0.02},
    "jobs differ 1.5 times as much in links": {"job_link": 0.3},
}


def mean(results: Sequence[dict[str, Any]], key: str) -> float:
    """Over cells, of those that have it."""
    return float(np.mean([result[key] for result in results if result.get(key) is not None]))


def score(results: Sequence[dict[str, Any]]) -> float:
    """Mean over splits of the median error over the bar; less is better."""
    return float(np.mean([mean([r for r in results if r["split"] == name], "median_ape") / bar for name, bar in BARS.items()]))


def main() -> None:
    """Runs all candidates on all cells and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CSV files, one per cluster")
    parser.add_argument("--seeds", type=int, default=1, help="how many random 10 %% of S4")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    chosen = parser.parse_args()
    rows = [row for path in sorted(chosen.data.glob("*.csv")) for row in read_rows(path)]
    cells = sorted({(row.cluster, row.model) for row in rows})
    clusters = sorted({cluster for cluster, _ in cells})
    results = []
    for name, changes in CANDIDATES.items():
        print(name, file=sys.stderr)
        for cluster, model in cells:
            for split_name in BARS:
                for seed in range(chosen.seeds if split_name == "S4" else 1):
                    found = run_ours(rows, cluster, model, split_name, seed, replace(Priors(), **changes))
                    results.append({"candidate": name, "cluster": cluster, "model": model, "split": split_name, **found})
    table = []
    for held_out in clusters:
        elsewhere = {name: score([r for r in results if r["candidate"] == name and r["cluster"] != held_out]) for name in CANDIDATES}
        best = min(elsewhere, key=lambda name: elsewhere[name])
        for split_name in BARS:
            mine = [r for r in results if (r["candidate"], r["cluster"], r["split"]) == (best, held_out, split_name)]
            figures = {key: mean(mine, key) for key in FIGURES}
            table.append({"cluster": held_out, "chosen": best, "split": split_name, **figures})
            print(held_out, split_name, best, *(f"{key} {100 * value:.1f}" for key, value in figures.items()))
    for split_name in BARS:
        mine = [row for row in table if row["split"] == split_name]
        print("mean", split_name, *(f"{key} {100 * mean(mine, key):.1f}" for key in FIGURES))
    if chosen.out:
        chosen.out.write_text(json.dumps({"date": date.today().isoformat(), "out_of_sample": table, "cells": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
