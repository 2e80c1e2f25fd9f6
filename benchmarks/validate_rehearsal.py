"""Rehearsed steps beside real ones: the link is calibrated, then each model trains with real ranks and with one rehearsing rank.

    sudo python benchmarks/validate_rehearsal.py --lab 2,4 --rate 1gbit,200mbit      # gloo, hosts of a network lab
    python benchmarks/validate_rehearsal.py --nccl-ranks 2                           # NCCL over TCP, sharing GPU 0 under MPS
    python benchmarks/validate_rehearsal.py --gpus 2                                 # NCCL, one rank per GPU

The rehearsal knows the all-reduces alone that the calibration timed. Both parts run the same worker with the same hooks in turns; a
rehearsing rank has the core or the slice of a GPU that a real one has, and as many neighbours that rehearse too where they share the
machine; of ranks with GPUs of their own one rehearses alone. Errors are relative to the real step; that of the exposed communication is
the difference of both, which a small exposure does not blow up.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import comparison_table
from benchmarks.compare_hooks import Placement, parse_arguments, placements, ranks_placed, run_ranks
from benchmarks.compare_rank import ComparisonReport
from benchmarks.compared_models import COMPARED_MODELS, why_missing
from gpualloc.bench.environment import detect_environment
from gpualloc.bench.interruption import Interrupted, interruptible
from gpualloc.cli.tables import json_text, output_console, text_table
from gpualloc.rehearsal.calibrate_ranks import calibrate_ranks
from gpualloc.rehearsal.link_model import LinkModel, write_link

_HOOKS = ("none", "torch_fp16", "gpualloc_fp16", "gpualloc_auto")
_MAX_BYTES = {"gloo": 2**26, "nccl": 2**28}  # of a collective of the calibration
_MIN_WIDTH = 130


def calibrate_placement(placement: Placement) -> LinkModel:
    """The placement's link as its ranks measure it."""
    with ranks_placed(placement) as (_, environments, _):
        return calibrate_ranks(
            environments,
            name="validation",
            backend="nccl" if placement.backend == "nccl" else "gloo",
            level="node" if placement.backend == "nccl" else "network",
            max_bytes=_MAX_BYTES[placement.backend],
            source=f"{placement.link}, {datetime.now(timezone.utc):%Y-%m-%d}",
            ranks_per_gpu=placement.ranks_per_gpu,
            num_threads=1 if placement.backend == "gloo" else None,
            wrap_command=placement.wrap_command,
        )


def validate(placement: Placement, model: str, link_file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Real and rehearsed figures of one model with each hook, and the errors between them."""
    is_node = placement.backend == "nccl"
    rehearsal = {
        "world_size": placement.world_size,
        "gpus_per_node": placement.world_size if is_node else 1,
        "link" if is_node else "network": str(link_file),
    }
    real, how = run_ranks(placement, model, arguments.hooks, arguments)
    rehearsed, _ = run_ranks(placement, model, arguments.hooks, arguments, rehearsal=rehearsal)
    rows = []
    for hook in arguments.hooks:
        if real.hooks[hook].skip_reason is None and rehearsed.hooks[hook].skip_reason is None:
            rows.append({"hook": hook, **_errors(real, rehearsed, hook)})
    return {
        "model": model,
        "description": COMPARED_MODELS[model].description,
        "world_size": placement.world_size,
        "link": placement.link + how,
        "real_compute_ms": comparison_table.compute_ms(real),
        "rehearsed_compute_ms": comparison_table.compute_ms(rehearsed),
        "hooks": rows,
    }


def _errors(real: ComparisonReport, rehearsed: ComparisonReport, hook: str) -> dict[str, float]:
    steps_ms = {
        name: statistics.median(report.hooks[hook].block_step_times_s) * 1e3 for name, report in (("real", real), ("rehearsed", rehearsed))
    }
    exposed_ms = {
        name: max(0.0, steps_ms[name] - comparison_table.compute_ms(report)) for name, report in (("real", real), ("rehearsed", rehearsed))
    }
    return {
        "real_step_ms": steps_ms["real"],
        "rehearsed_step_ms": steps_ms["rehearsed"],
        "step_error": steps_ms["rehearsed"] / steps_ms["real"] - 1,
        "real_exposed_ms": exposed_ms["real"],
        "rehearsed_exposed_ms": exposed_ms["rehearsed"],
        "exposed_error_of_step": (exposed_ms["rehearsed"] - exposed_ms["real"]) / steps_ms["real"],
    }


def print_case(case: dict[str, Any]) -> None:
    """The case as a table on stdout."""
    console = output_console()
    console.width = max(console.width, _MIN_WIDTH)
    columns = ("real ms", "rehearsed ms", "error", "real exposed", "rehearsed exposed", "error / step")
    table = text_table("hook", *columns, right=columns, fixed=("hook",))
    for row in case["hooks"]:
        table.add_row(
            row["hook"],
            f"{row['real_step_ms']:.2f}",
            f"{row['rehearsed_step_ms']:.2f}",
            f"{row['step_error']:+.1%}",
            f"{row['real_exposed_ms']:.2f}",
            f"{row['rehearsed_exposed_ms']:.2f}",
            f"{row['exposed_error_of_step']:+.1%}",
        )
    console.print(f"{case['description']}: {case['link']}; compute {case['real_compute_ms']:.2f} and {case['rehearsed_compute_ms']:.2f} ms")
    console.print(table)


def summary(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Over all rows of all cases."""
    rows = [row for case in cases for row in case.get("hooks", ())]
    step_errors = [abs(row["step_error"]) for row in rows]
    return {
        "num_rows": len(rows),
        "median_abs_step_error": statistics.median(step_errors),
        "largest_abs_step_error": max(step_errors),
        "median_abs_exposed_error_of_step": statistics.median(abs(row["exposed_error_of_step"]) for row in rows),
    }


def main() -> int:
    arguments = parse_arguments(__doc__, default_hooks=_HOOKS)
    device = "cuda" if arguments.nccl_ranks or arguments.gpus else "cpu"
    models = arguments.models or [name for name, model in COMPARED_MODELS.items() if model.device == device]
    cases: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    result = {
        "command": " ".join(sys.argv),
        "started_at_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": dataclasses.asdict(detect_environment(device)),
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "cases": cases,
        "links": links,
    }
    try:
        with interruptible(), closing(placements(arguments)) as wanted:
            for placement in wanted:
                print(f"calibrating {placement.link}", file=sys.stderr)
                link = calibrate_placement(placement)
                links.append({"link": placement.link, **link.model_dump(mode="json", exclude_none=True)})
                with ranks_placed(placement) as (folder, _, _):
                    link_file = folder / "link.yaml"
                    write_link(link, link_file)
                    for model in models:
                        if why_missing(model) is not None:
                            continue
                        print(f"{model}, {placement.link}", file=sys.stderr)
                        cases.append(validate(placement, model, link_file, arguments))
                        print_case(cases[-1])
                        result["summary"] = summary(cases)
                        if arguments.output:  # after every case: a later one may be cut short
                            arguments.output.write_text(json_text(result) + "\n")
    except Interrupted as interruption:
        return interruption.exit_code
    print(result["summary"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
