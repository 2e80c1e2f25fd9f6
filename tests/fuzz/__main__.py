"""Searches for inputs that break a target, led by coverage: python -m tests.fuzz [--seconds 60] [target ...]

Needs the extra `fuzz` (atheris). Each target runs in a process of its own; an input that breaks it is kept in --keep, and its traceback
is on stderr. Run such an input again with: python -m tests.fuzz --replay FILE target
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_SLOWEST_S = 60  # an input that takes longer counts as a hang; files are written by hand and read in milliseconds
_MAX_MIB = 4096
_DEEP = 300  # brackets of a seed: nested so deeply it takes seconds while lines are counted, and so would all that is made of it
_MAX_BYTES = 16_384  # of an input: parsers of YAML are slow, and short inputs find more


def main() -> int:
    if sys.argv[1:2] == ["--alone"]:  # this process is a target's own
        _search(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    from tests.fuzz.operations import OPERATIONS
    from tests.fuzz.parsers import PARSERS

    names = [*PARSERS, *OPERATIONS]
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=str(__doc__).splitlines()[0])
    arguments.add_argument("targets", nargs="*", metavar="target", help=f"one of {', '.join(names)}; none: all")
    arguments.add_argument("--seconds", type=int, default=60, help="for each target")
    arguments.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for the inputs that broke a target")
    arguments.add_argument("--replay", type=Path, help="an input to run once")
    given = arguments.parse_args()
    unknown = [name for name in given.targets if name not in names]
    if unknown:
        arguments.error(f"no target {unknown[0]!r}; choose of {', '.join(names)}")
    targets = given.targets or names
    if given.replay is not None:
        with tempfile.TemporaryDirectory() as folder:
            _target(targets[0], Path(folder))(given.replay.read_bytes())
        return 0
    broken = []
    for name in targets:
        print(f"--- {name}, {given.seconds} s", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--alone", name, str(given.seconds), str(given.keep)]
        if subprocess.run(command).returncode != 0:
            broken.append(name)
    print(f"{len(targets) - len(broken)} of {len(targets)} targets held" + (f"; broken: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


def _target(name: str, folder: Path) -> Callable[[bytes], object]:
    from tests.fuzz.operations import OPERATIONS
    from tests.fuzz.parsers import PARSERS

    if name in OPERATIONS:
        return OPERATIONS[name]
    reader = PARSERS[name]
    return lambda data: reader.run(data, folder)


def _search(name: str, seconds: int, keep: Path) -> None:
    """Ends the process."""
    import atheris

    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus, files = Path(folder) / "corpus", Path(folder) / "files"
        corpus.mkdir()
        files.mkdir()
        with atheris.instrument_imports(include=["gpualloc", "tests.fuzz", "yaml", "tomllib"]):  # what is imported here is led by coverage
            from tests.fuzz.parsers import PARSERS

            target = _target(name, files)
            for number, seed in enumerate(PARSERS[name].seeds() if name in PARSERS else [bytes(64)]):
                target(seed)
                if seed.count(b"[") < _DEEP:
                    (corpus / str(number)).write_bytes(seed)
        options = {
            "max_total_time": seconds,
            "timeout": _SLOWEST_S,
            "rss_limit_mb": _MAX_MIB,
            "max_len": _MAX_BYTES,
            "artifact_prefix": f"{keep}/{name}-",
            "verbosity": 0,
            "print_final_stats": 1,
        }
        atheris.Setup([sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)], target)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
