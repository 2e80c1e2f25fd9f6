"""A clock that steps lengthens and shortens nothing."""

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "gpualloc"
# Where the wall clock's time is what is wanted: stamps of samples, and ages of files by their own stamps.
STAMPS = {"watching", "doctor/storage.py", "cli/watch.py"}


def test_no_duration_is_by_the_clock_on_the_wall() -> None:
    found = set()
    for path in SOURCES.rglob("*.py"):
        place = path.relative_to(SOURCES)
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        if calls & {"time.time", "time.time_ns"} and place.parts[0] not in STAMPS and str(place) not in STAMPS:
            found.add(str(place))
        # A date is written down and never subtracted.
        subtracted = {
            ast.unparse(side)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
            for side in (node.left, node.right)
        }
        if any("datetime.now" in side for side in subtracted):
            found.add(str(place))
    assert found == set()
