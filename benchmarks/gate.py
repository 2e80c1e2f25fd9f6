"""Has a benchmark become slower, beyond noise? Compares two files of pytest-benchmark.

    python benchmarks/gate.py new.json                # with the committed baseline of this machine
    python benchmarks/gate.py old.json new.json
    python benchmarks/gate.py --accept cpu new.json   # makes new.json the baseline benchmarks/results/baseline_cpu.json

A benchmark has become slower if its median rose by more than its tolerance, and its fastest round by more than half of that. The
tolerance is 10 %, or, where the rounds spread, twice their interquartile range (of both files, added as squares) over the median. The
fastest round tells a slower program from a machine that was busy: a neighbour delays most rounds, seldom all of them.

Exit code: 0 nothing slower; 1 something slower, or missing in the new file; 2 the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIN_TOLERANCE = 0.10
IQRS = 2.0
NOISY_TOLERANCE = 0.5  # said, but no failure
EXIT_SLOWER, EXIT_INCOMPARABLE = 1, 2


class IncomparableError(Exception):
    """The files cannot be compared; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark in both files."""

    name: str
    old_median_s: float
    new_median_s: float
    change: float  # of the median, as a fraction
    fastest_change: float  # of the fastest round
    tolerance: float

    @property
    def verdict(self) -> str:
        """ "slower", "faster", "same", or "noisy": the rounds spread so much that only a great change could be seen."""
        if self.change > self.tolerance and self.fastest_change > self.tolerance / 2:
            return "slower"
        if self.change < -self.tolerance and self.fastest_change < -self.tolerance / 2:
            return "faster"
        return "noisy" if self.tolerance > NOISY_TOLERANCE else "same"


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[Comparison], list[str]]:
    """(the benchmarks of both files, the names that only the old one has)."""
    new_stats = {benchmark["fullname"]: benchmark["stats"] for benchmark in new["benchmarks"]}
    compared, missing = [], []
    for benchmark in old["benchmarks"]:
        name, before = benchmark["fullname"], benchmark["stats"]
        after = new_stats.get(name)
        if after is None:
            missing.append(name)
            continue
        spread = math.hypot(before["iqr"], after["iqr"]) / before["median"]
        compared.append(
            Comparison(
                name=name,
                old_median_s=before["median"],
                new_median_s=after["median"],
                change=after["median"] / before["median"] - 1,
                fastest_change=after["min"] / before["min"] - 1,
                tolerance=max(MIN_TOLERANCE, IQRS * spread),
            )
        )
    return compared, missing


def machine(results: dict[str, Any]) -> dict[str, str]:
    """What must be the same for times to be compared: processor, cores, and the devices that the benchmarks name."""
    info = results["machine_info"]
    devices = sorted({benchmark["extra_info"]["device"] for benchmark in results["benchmarks"] if "device" in benchmark["extra_info"]})
    return {
        "processor": str(info["cpu"].get("brand_raw", info["machine"])),
        "cores": str(info["cpu"].get("count")),
        "devices": ", ".join(devices),
    }


def read(path: Path) -> dict[str, Any]:
    """A file of pytest-benchmark, looked through for what is needed of it."""
    try:
        results: dict[str, Any] = json.loads(path.read_text())
        machine(results)
        for benchmark in results["benchmarks"]:
            figures = [benchmark["stats"][name] for name in ("median", "min", "iqr")]
            if benchmark["fullname"] == "" or not all(map(math.isfinite, figures)) or min(figures[:2]) <= 0:
                raise ValueError(f"{benchmark['fullname']} has a median, minimum and IQR of {figures}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncomparableError(
            f"{path} cannot be read: {error!r}; write it with: pytest benchmarks/... --benchmark-json={path}"
        ) from error
    return results


def baseline_of(new: dict[str, Any]) -> Path:
    """The committed file of the same machine."""
    paths = sorted(RESULTS.glob("baseline_*.json"))
    for path in paths:
        if machine(read(path)) == machine(new):
            return path
    known = "; ".join(f"{path.name}: {_words(machine(read(path)))}" for path in paths) or "none"
    raise IncomparableError(
        f"no baseline is of this machine, {_words(machine(new))} ({known}); compare with a file of your own: gate.py OLD.json NEW.json"
    )


def accept(device: str, new: dict[str, Any]) -> Path:
    """Writes the baseline of a device, without the single rounds."""
    for benchmark in new["benchmarks"]:
        benchmark["stats"].pop("data", None)
    path = RESULTS / f"baseline_{device}.json"
    path.write_text(json.dumps(new, indent=1) + "\n")
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="[OLD.json] NEW.json")
    parser.add_argument("--accept", metavar="DEVICE", help="make NEW.json the baseline of a device, such as cpu or h200")
    parser.add_argument("--any-machine", action="store_true", help="compare files of different machines all the same")
    parser.add_argument("--subset", action="store_true", help="NEW.json may lack benchmarks of OLD.json")
    options = parser.parse_args(arguments)
    if len(options.files) > 2 or (options.accept and len(options.files) > 1):
        parser.error("give NEW.json, or OLD.json and NEW.json; with --accept NEW.json alone")
    try:
        new = read(options.files[-1])
        if options.accept:
            print(f"{accept(options.accept, new)} written")
            return 0
        old_path = options.files[0] if len(options.files) == 2 else baseline_of(new)
        old = read(old_path)
        if machine(old) != machine(new) and not options.any_machine:
            raise IncomparableError(
                f"{old_path} is of {_words(machine(old))} and {options.files[-1]} of {_words(machine(new))}; "
                "--any-machine compares them all the same"
            )
        compared, missing = compare(old, new)
        if not compared:
            raise IncomparableError(f"{old_path} and {options.files[-1]} have no benchmark in common")
    except IncomparableError as error:
        print(f"gate: {error}", file=sys.stderr)
        return EXIT_INCOMPARABLE
    _print(compared, missing)
    num_noisy = sum(each.verdict == "noisy" for each in compared)
    if num_noisy:
        print(f"gate: warning: {num_noisy} too noisy to tell much; run them on a quieter machine", file=sys.stderr)
    num_slower = sum(each.verdict == "slower" for each in compared)
    if num_slower or (missing and not options.subset):
        print(f"gate: {num_slower} slower than in {old_path}, {len(missing)} missing", file=sys.stderr)
        return EXIT_SLOWER
    print(f"gate: nothing slower than in {old_path} ({len(compared)} benchmarks)")
    return 0


def _print(compared: list[Comparison], missing: list[str]) -> None:
    width = max(len(each.name) for each in compared)
    print(f"{'':{width}}  {'old us':>10}  {'new us':>10}  {'median':>7}  {'fastest':>7}  {'allowed':>7}")
    for each in compared:
        times = f"{each.old_median_s * 1e6:10.1f}  {each.new_median_s * 1e6:10.1f}"
        changes = f"{each.change:+7.1%}  {each.fastest_change:+7.1%}  {each.tolerance:7.1%}"
        print(f"{each.name:{width}}  {times}  {changes}  {each.verdict}")
    for name in missing:
        print(f"{name:{width}}  missing")


def _words(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value or 'unknown'}" for name, value in facts.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
