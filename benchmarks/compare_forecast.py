"""Forecast error on measured clusters: gpualloc beside linear scaling, the universal scalability law and Pollux's model.

    python benchmarks/compare_forecast.py --data DIR [--out benchmarks/results/forecast_<date>.json]

DIR holds one CSV file per cluster with the columns of docs/forecast.md. A cell is a job on a cluster. Of the cell, a model is given
the rows of a split; gpualloc also gets the cluster's other jobs, all of them (leave one model out). With `elsewhere`, it is given all
other clusters and no row of the cell (leave one cluster out). With `published`, one other cluster and the published memory bandwidths.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.forecast_peers import linear_scaling, pollux, universal_scalability
from gpualloc.scaling import Forecast, ScalingModel, StepQuery, StepRow
from gpualloc.scaling.csv_rows import read_rows
from gpualloc.scaling.priors import Priors

SPLITS: dict[str, Callable[[StepRow], bool]] = {
    "S1": lambda row: row.num_gpus == 1,
    "S2": lambda row: row.num_gpus <= 2 and row.num_nodes == 1,
    "S3": lambda row: row.num_gpus <= 2,
}
PEERS = {"linear scaling": linear_scaling, "universal scalability law": universal_scalability, "Pollux": pollux}
OURS = "gpualloc"
ENOUGH = 0.7  # of linear scaling


def split(cell: Sequence[StepRow], name: str, seed: int) -> tuple[list[StepRow], list[StepRow]]:
    """(given rows, held-out rows)."""
    if name == "S4":
        chosen = np.zeros(len(cell), dtype=bool)
        chosen[np.random.default_rng(seed).choice(len(cell), max(1, round(0.1 * len(cell))), replace=False)] = True
    else:
        chosen = np.array([SPLITS[name](row) for row in cell])
    return [row for row, is_in in zip(cell, chosen, strict=True) if is_in], [
        row for row, is_in in zip(cell, chosen, strict=True) if not is_in
    ]


def run_cell(rows: Sequence[StepRow], cluster: str, model: str, name: str, seed: int) -> list[dict[str, Any]]:
    """One result per model for a cell and split."""
    cell = [row for row in rows if row.cluster == cluster and row.model == model]
    given, held_out = split(cell, name, seed)
    found = [{"method": method, **_score(np.asarray(fit(given)(held_out)), held_out)} for method, fit in PEERS.items()]
    for result, fit in zip(found, PEERS.values(), strict=True):
        result |= _decisions(fit(given), cell, given)
    found.append({"method": OURS, **run_ours(rows, cluster, model, name, seed)})
    return [{"cluster": cluster, "model": model, "split": name, **result} for result in found]


def run_ours(rows: Sequence[StepRow], cluster: str, model: str, name: str, seed: int, priors: Priors | None = None) -> dict[str, Any]:
    """gpualloc's figures for a cell and split."""
    cell = [row for row in rows if row.cluster == cluster and row.model == model]
    given, held_out = split(cell, name, seed)
    others = [row for row in rows if row.cluster == cluster and row.model != model]
    begin = time.process_time()
    fitted = ScalingModel.fit([*others, *given], priors=priors)
    fit_s = time.process_time() - begin
    forecasts = fitted.predict(held_out)
    ours = _score_forecasts(forecasts, held_out)
    decisions = _decisions(lambda queries: np.array([f.step_time_s or np.nan for f in fitted.predict(queries)]), cell, given)
    return {**ours, **decisions, "fit_cpu_s": fit_s, "predict_cpu_s": time.process_time() - begin - fit_s}


def run_elsewhere(rows: Sequence[StepRow], cluster: str, model: str) -> list[dict[str, Any]]:
    """The cell without a row of it, from the other clusters. With rows of it, other clusters leave the forecast alone."""
    rest = [row for row in rows if not (row.cluster == cluster and row.model == model)]
    held_out = [row for row in rows if row.cluster == cluster and row.model == model and row.num_gpus > 1]
    result = _score_forecasts(ScalingModel.fit(rest).predict(held_out), held_out)
    return [{"cluster": cluster, "model": model, "split": "none, elsewhere", "method": OURS, "decision": None, **result}]


GPUS = {"aws": "Tesla T4", "rtx": "NVIDIA GeForce RTX 2080 Ti", "dgx": "NVIDIA A100-SXM4-40GB"}  # of the public clusters


def run_published(rows: Sequence[StepRow], cluster: str, model: str) -> list[dict[str, Any]]:
    """The cell's single-GPU rows from each other cluster's by published ratios: links have none."""
    held_out = [replace(row, cluster=GPUS[cluster]) for row in rows if (row.cluster, row.model, row.num_gpus) == (cluster, model, 1)]
    results = []
    for known in sorted(set(GPUS) - {cluster}):
        fitted = ScalingModel.fit([replace(row, cluster=GPUS[known]) for row in rows if row.cluster == known])
        score = _score_forecasts(fitted.like(GPUS[cluster], known=GPUS[known]).predict(held_out), held_out)
        name = "published, single GPU"
        results.append({"cluster": cluster, "model": model, "split": name, "method": OURS, "from": known, "decision": None, **score})
    return results


def _score_forecasts(forecasts: Sequence[Forecast], held_out: Sequence[StepRow]) -> dict[str, Any]:
    answered = [(f, row) for f, row in zip(forecasts, held_out, strict=True) if f.step_time_s is not None]
    refused = len(forecasts) - len(answered)
    if not answered:
        return {"median_ape": None, "p90_ape": None, "coverage": None, "refused": refused}
    score = _score(np.array([f.step_time_s for f, _ in answered]), [row for _, row in answered])
    inside = [(f.low_s or 0) <= row.step_time_s <= (f.high_s or 0) for f, row in answered]
    width = [np.log((f.high_s or 1) / (f.low_s or 1)) for f, _ in answered]
    return {**score, "coverage": float(np.mean(inside)), "median_log_width": float(np.median(width)), "refused": refused}


def _score(forecast: np.ndarray, held_out: Sequence[StepRow]) -> dict[str, Any]:
    errors = np.abs(forecast / np.array([row.step_time_s for row in held_out]) - 1)
    return {"median_ape": float(np.median(errors)), "p90_ape": float(np.percentile(errors, 90))}


def _decisions(
    predict: Callable[[Sequence[StepQuery]], np.ndarray], cell: Sequence[StepRow], given: Sequence[StepRow]
) -> dict[str, float | None]:
    """How often "do 4 GPUs keep 70 % efficiency at the same batch on each?" is answered as the measurements do.

    `decision`: by forecasts of both times. `decision_measured_one`: by the measured time of one GPU where it is given, as gpualloc
    advise has it.
    """
    alone = {row.per_device_batch_size: row for row in cell if row.num_gpus == 1}
    pairs = [(alone[row.per_device_batch_size], row) for row in cell if row.num_gpus == 4 and row.per_device_batch_size in alone]
    if not pairs:
        return {"decision": None, "decision_measured_one": None}
    several_s, one_s = np.asarray(predict([row for _, row in pairs])), np.asarray(predict([row for row, _ in pairs]))
    known = {row.per_device_batch_size: row.step_time_s for row in given if row.num_gpus == 1}
    best_s = np.array([known.get(row.per_device_batch_size, time_s) for (row, _), time_s in zip(pairs, one_s, strict=True)])
    truth = np.array([one.step_time_s / four.step_time_s >= ENOUGH for one, four in pairs])
    return {
        "decision": float(np.mean((one_s / several_s >= ENOUGH) == truth)),
        "decision_measured_one": float(np.mean((best_s / several_s >= ENOUGH) == truth)),
    }


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over cells, per split and method."""
    table = []
    for name in dict.fromkeys(result["split"] for result in results):
        for method in dict.fromkeys(result["method"] for result in results if result["split"] == name):
            mine = [result for result in results if (result["split"], result["method"]) == (name, method)]

            def mean(key: str, of: Sequence[dict[str, Any]] = mine) -> float | None:
                known = [result[key] for result in of if result.get(key) is not None]
                return float(np.mean(known)) if known else None

            figures = ("median_ape", "p90_ape", "decision", "decision_measured_one", "coverage", "median_log_width", "fit_cpu_s")
            table.append({"split": name, "method": method, "cells": len(mine), **{key: mean(key) for key in figures}})
    return table


def print_table(table: Sequence[dict[str, Any]]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    print(f"{'split':17} {'method':26} {'median %':>8} {'p90 %':>7} {'4 GPUs right %':>14} {'one measured %':>14} {'in 90 % interval':>16}")
    for row in table:
        figures = (row["median_ape"], row["p90_ape"], row["decision"], row["decision_measured_one"], row["coverage"])
        cells = [percent(value).rjust(width) for value, width in zip(figures, (8, 7, 14, 14, 16), strict=True)]
        print(f"{row['split']:17} {row['method']:26} {' '.join(cells)}")


def main() -> None:
    """Runs the comparison and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CSV files, one per cluster")
    parser.add_argument("--splits", default="S1,S2,S3,S4,elsewhere,published")
    parser.add_argument("--seeds", type=int, default=3, help="how many random 10 %% of S4")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    chosen = parser.parse_args()
    rows = [row for path in sorted(chosen.data.glob("*.csv")) for row in read_rows(path)]
    cells = sorted({(row.cluster, row.model) for row in rows})
    results: list[dict[str, Any]] = []
    for name in chosen.splits.split(","):
        for cluster, model in cells:
            print(f"{name} {cluster} {model}", file=sys.stderr)
            if name == "elsewhere":
                results += run_elsewhere(rows, cluster, model)
            if name == "published":
                results += run_published(rows, cluster, model)
            for seed in range(0 if name in ("elsewhere", "published") else chosen.seeds if name == "S4" else 1):
                results += run_cell(rows, cluster, model, name, seed)
    table = summarise(results)
    print_table(table)
    if chosen.out:
        made = {"date": date.today().isoformat(), "command": " ".join(sys.argv), "numpy": np.__version__, "cpus": os.cpu_count()}
        chosen.out.write_text(
            json.dumps({**made, "command": f"compare_forecast.py --splits {chosen.splits}", "summary": table, "cells": results}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
