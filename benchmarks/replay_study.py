"""How many cases a study needs on measured efficiencies: with the scaling model choosing the next size, and with halving alone.

    python benchmarks/replay_study.py --data DIR [--out benchmarks/results/study_replay_<date>.json]

DIR holds one CSV file per cluster with the columns of docs/forecast.md. A question is a job, a placement of several GPUs with at least five
batch sizes, and a bar; each case "runs" in the time that its row has, with repeats that spread by a thousandth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpualloc.bench.grid import GridCell
from gpualloc.experiment import Step, make_question, next_step, threshold
from gpualloc.records import BenchCase, Measurement
from gpualloc.scaling import StepRow
from gpualloc.scaling.csv_rows import read_rows

BARS = (0.6, 0.7, 0.8, 0.9)
PLACEMENTS = ("2", "4", "8", "44", "1111", "22")
SPREAD = 0.001


def series_of(rows: Sequence[StepRow]) -> list[tuple[str, int, dict[int, tuple[float, float]]]]:
    """(name, GPUs, batch size -> step time in seconds on one GPU and on several) of every job and placement."""
    found = []
    for cluster, model in sorted({(row.cluster, row.model) for row in rows}):
        mine = [row for row in rows if (row.cluster, row.model) == (cluster, model)]
        alone = {row.per_device_batch_size: row.step_time_s for row in mine if row.num_gpus == 1}
        for placement in PLACEMENTS:
            several = [row for row in mine if row.placement == placement and row.per_device_batch_size in alone]
            steps_s = {row.per_device_batch_size: (alone[row.per_device_batch_size], row.step_time_s) for row in several}
            if len(steps_s) >= 5:
                found.append((f"{cluster} {model} {placement}", several[0].num_gpus, dict(sorted(steps_s.items()))))
    return found


def replay(num_gpus: int, steps_s: dict[int, tuple[float, float]], min_efficiency: float) -> tuple[int, bool, str]:
    """(cases run, whether the answer is certain, why it ended)."""
    cases = [_case(batch, world_size) for batch in steps_s for world_size in (1, num_gpus)]
    question = make_question([GridCell(case, None) for case in cases], min_efficiency=min_efficiency)
    measured: dict[str, Measurement] = {}
    while isinstance(step := next_step(question, measured), Step):
        for cell in step.cells:
            step_s = steps_s[cell.case.per_device_batch_size][cell.case.world_size > 1]
            repeats = tuple(step_s * (1 + SPREAD * offset) for offset in (-1, 0, 1))
            measured[cell.case.key()] = Measurement(
                case=cell.case, status="ok", step_time_s=step_s, repeat_step_times_s=repeats, num_rounds=step.rounds
            )
    return len(measured), step.is_certain, step.why


def _case(batch: int, world_size: int) -> BenchCase:
    fixed: dict[str, Any] = {"ranks_per_gpu": 1, "data": "synthetic", "num_warmup_steps": 1, "num_steps": 1, "num_repeats": 3, "seed": 0}
    return BenchCase(
        workload="image",
        model="resnet50",
        image_size_px=224,
        sequence_length=None,
        per_device_batch_size=batch,
        precision="fp32",
        strategy="single" if world_size == 1 else "ddp",
        hook="none",
        world_size=world_size,
        device="cuda",
        **fixed,
    )


def main() -> None:
    """Runs every question in both ways and prints the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CSV files, one per cluster")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    chosen = parser.parse_args()
    series = series_of([row for path in sorted(chosen.data.glob("*.csv")) for row in read_rows(path)])
    forecast, results = threshold._crossing, []
    for rule, crossing in (("forecast", forecast), ("halving", lambda *_: None)):
        threshold._crossing = crossing
        for name, num_gpus, steps_s in series:
            for bar in BARS:
                count, is_certain, why = replay(num_gpus, steps_s, bar)
                answer: dict[str, Any] = {"sizes": len(steps_s), "cases": count, "is_certain": is_certain, "why": why}
                results.append({"rule": rule, "series": name, "min_efficiency": bar, **answer})
    for rule in ("forecast", "halving"):
        mine = [result for result in results if result["rule"] == rule]
        inner = [result["cases"] for result in mine if result["cases"] > 4]
        print(f"{rule:8}: {sum(result['cases'] for result in mine):,} cases of {len(mine)} questions, at most {max(inner)} of one")
    if chosen.out:
        made = {"date": date.today().isoformat(), "command": "replay_study.py --data DIR"}
        chosen.out.write_text(json.dumps({**made, "questions": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
