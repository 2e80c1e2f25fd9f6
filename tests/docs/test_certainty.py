"""docs/certainty.md gives figures that the committed result files give."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "certainty.md").read_text().split())
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def spreads(names: list[str]) -> list[tuple[int, float]]:
    """(image size, (slowest - fastest repeat) / median) of each case with figures; 0 px for text."""
    rows = [row for name in names for row in read(name)["measurements"] if row["repeat_step_times_s"]]
    times = [(row["case"]["image_size_px"] or 0, row["repeat_step_times_s"]) for row in rows]
    return [(size, (max(each) - min(each)) / statistics.median(each)) for size, each in times]


def test_the_spread_of_repeats() -> None:
    h100 = spreads([f"{name}_h100_2026-11-26.json" for name in ("study_mobilenet_v2", "study_resnet50", "slices_mobilenet_v2")])
    large, small = [spread for size, spread in h100 if size >= 200], [spread for size, spread in h100 if size < 200]
    assert max(large) <= 0.05
    tight = sum(spread <= 0.05 for spread in small)
    assert (
        f"from 200 px on all {len(large)} cases are within 5 %, at 100 px, where launching takes as long as computing, {tight} of" in PAGE
    )
    assert f"{len(large)} of {len(large)} cases from 200 px on, {tight} of {len(small)} at 100 px" in PAGE
    h200 = spreads(["bench_fp16_h200_2026-11-24.json"])
    assert f"[{sum(spread <= 0.05 for _, spread in h200)} of {len(h200)}]" in PAGE


def test_rehearsals() -> None:
    cases = [case for path in sorted(RESULTS.glob("rehearsal_*.json")) for case in read(path.name)["cases"]]
    rows = [row for case in cases for row in case["hooks"]]
    errors = [abs(row["step_error"]) for row in rows]
    near, faster = sum(error <= 0.08 for error in errors), sum(row["step_error"] < 0 for row in rows)
    exposed = statistics.median(abs(row["exposed_error_of_step"]) for row in rows)
    assert (
        f"{len(rows)} rows of model, hook and link: the median error of a step is {100 * statistics.median(errors):.1f} %, "
        f"{near} rows are within 8 %, the largest error is {percent(max(errors))}; {faster} of the {len(rows)} promise a faster step"
    ) in PAGE
    assert f"off by {100 * exposed:.1f} % of the step in the median" in PAGE
    (lab,) = read("rehearsal_lab4_1gbit_2026-11-26.json")["cases"]
    assert f"took {lab['real_compute_ms']:.0f} ms a step in one run and {lab['rehearsed_compute_ms']:.0f} in another" in PAGE


def test_forecasts() -> None:
    shown = [line for line in read("forecast_2026-11-27.json")["summary"] if line["method"] == "gpualloc"]
    assert len(shown) == 5
    for line in shown:
        figures = f"{100 * line['median_ape']:.1f} % | {percent(line['p90_ape'])} | {percent(line['coverage'])}"
        assert f"| {figures} | {math.exp(line['median_log_width']):.1f} |" in PAGE, line["split"]
    out = read("forecast_out_of_sample_2026-11-27.json")["out_of_sample"]
    shares = [f"{100 * line['coverage']:.0f}" for line in out if line["split"] == "S1"]
    assert f"from one GPU's rows was {shares[0]}, {shares[1]} and {shares[2]} %" in PAGE


def test_policies() -> None:
    policies = read("policies_2026-11-27.json")["policies"]
    for name in ("gpualloc", "gpualloc, no work declared"):
        ratio = policies[name]["over_sia"]["mean_jct_h"]
        assert f"{ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" in PAGE


def test_slices() -> None:
    rows = read("bench_bf16_two_mps_slices_h200_2026-11-24.json")["measurements"]
    alone, together = (
        1000 * next(row["compute_time_s"] for row in rows if (row["case"]["strategy"], row["case"]["hook"]) == kind)
        for kind in (("single", "none"), ("ddp", "none"))
    )
    assert f"computed for {alone:.1f} ms in a slice alone and for {together:.1f} ms" in PAGE
