"""docs/api.md: every public name has a docstring, and the page is what the code says."""

from __future__ import annotations

import importlib
import inspect
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gpualloc

ROOT = Path(__file__).parents[2]
MAKE = runpy.run_path(str(ROOT / "docs" / "make_api.py"))


@cache
def module_of(name: str) -> Any:
    return importlib.import_module(name)


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == MAKE["make_api"](), "run: python docs/make_reference.py"


def test_every_package_that_names_what_is_public_is_on_the_page() -> None:
    packages = {path.parent.name for path in (ROOT / "gpualloc").glob("*/__init__.py") if "__all__ = [" in path.read_text()}
    assert packages >= {"comm", "train", "store"}
    assert {f"gpualloc.{name}" for name in packages} - set(MAKE["MODULES"]) == set()
    page = (ROOT / "docs" / "api.md").read_text()
    for name in gpualloc.__all__:
        assert (f"## `gpualloc.{name}`" if inspect.ismodule(getattr(gpualloc, name)) else f"### `{name}`") in page


@pytest.mark.parametrize("name", MAKE["MODULES"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = module_of(name)
    bare = [] if module.__doc__ else [name]
    for each in MAKE["public_names"](module):
        thing = getattr(module, each)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            bare += [] if MAKE["docstring"](thing) else [each]
        if inspect.isclass(thing):
            bare += [f"{each}.{member}" for member, one in MAKE["public_members"](thing).items() if not MAKE["docstring"](one)]
    assert bare == []


def test_what_has_no_docstring_is_seen() -> None:
    class Bare:
        @property
        def value(self) -> int:
            return 1

        def method(self) -> None: ...

    members = MAKE["public_members"](Bare)
    assert list(members) == ["value", "method"]
    assert [MAKE["docstring"](one) for one in (Bare, *members.values())] == ["", "", ""]
