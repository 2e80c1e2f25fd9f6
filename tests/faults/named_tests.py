"""Tests by their ids, read from the source: nothing is imported or run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]


def markers_of(test_id: str) -> set[str]:
    """pytest's markers of "folder/test_file.py::test_name", the file's among them; those of single parameters do not count.

    Raises:
        KeyError: there is no such test.
    """
    file, _, name = test_id.partition("::")
    return _tests_in(file)[name]


@cache
def _tests_in(file: str) -> dict[str, set[str]]:
    path = TESTS / file
    if not path.is_file():
        raise KeyError(file)
    tree = ast.parse(path.read_text())
    of_file: set[str] = set()
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            of_file = _marks(node.value)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = {mark for each in node.decorator_list if not _is_parametrize(each) for mark in _marks(each)}
    return {name: marks | of_file for name, marks in found.items()}


def _is_parametrize(node: ast.expr) -> bool:
    return "mark.parametrize" in ast.unparse(node)


def _marks(node: ast.expr) -> set[str]:
    return set(re.findall(r"\bmark\.(\w+)", ast.unparse(node)))
