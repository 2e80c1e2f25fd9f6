"""Writes docs/api.md: every public name of the Python packages, from the code. A test fails where the page is not what this writes.

python docs/make_reference.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MODULES = (  # gpualloc.* except those that are the command line's own
    "gpualloc.comm", "gpualloc.comm.fsdp", "gpualloc.ops", "gpualloc.train", "gpualloc.errors", "gpualloc.records", "gpualloc.rehearsal",
    "gpualloc.scaling", "gpualloc.advice", "gpualloc.findings", "gpualloc.experiment", "gpualloc.money", "gpualloc.plan.protocol",
    "gpualloc.plan.policies", "gpualloc.plan.records", "gpualloc.store", "gpualloc.watching", "gpualloc.report", "gpualloc.doctor",
    "gpualloc.strategies", "gpualloc.workloads",
)  # fmt: skip
HEAD = """# Reference: Python

Made from the code by `python docs/make_reference.py`. Public are the names of `gpualloc` itself: {names};
the changelog tells what changes in them. The other packages below are for scripts of your own and may change with a release.
Numbers carry their unit in their name.
"""
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Warns", "Attributes")
LINE = 110


def make_api() -> str:
    """The page as Markdown."""
    import gpualloc

    lines = [HEAD.format(names=", ".join(f"`{name}`" for name in gpualloc.__all__))]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        lines += [f"## `{module_name}`", "", *_prose(module.__doc__ or "")]
        for name in public_names(module):
            lines += _entry(name, getattr(module, name))
    return "\n".join(lines).rstrip() + "\n"


def public_names(module: Any) -> list[str]:
    """Of `__all__`, else what the module itself defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def public_members(cls: type) -> dict[str, Any]:
    """Methods and properties that the class itself has, by name."""
    kinds = (property, cached_property, classmethod, staticmethod)
    return {
        name: one for name, one in vars(cls).items() if not name.startswith("_") and (inspect.isfunction(one) or isinstance(one, kinds))
    }


def docstring(thing: Any) -> str:
    """Empty where there is none of its own: a dataclass makes one up."""
    function = _function(thing)
    text = inspect.cleandoc(function.__doc__ or "")
    return "" if inspect.isclass(thing) and text.startswith(f"{thing.__name__}(") else text


def _function(thing: Any) -> Any:
    """What a property or a method is made of."""
    return next((getattr(thing, place) for place in ("fget", "func", "__func__") if hasattr(thing, place)), thing)


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield from (f"### `{name}`", "")
    if inspect.isclass(thing):
        yield from _code(_class_head(thing))
        yield from _prose(docstring(thing))
        for member_name, member in public_members(thing).items():
            is_value = isinstance(member, (property, cached_property))
            what = member_name if is_value else f"{member_name}{_signature(_function(member), len(member_name))}"
            yield from (f"**`{what}`**", "") if "\n" not in what else _code(what)
            yield from _prose(docstring(member))
    elif inspect.isroutine(thing):
        yield from _code(f"{name}{_signature(thing, len(name))}")
        yield from _prose(docstring(thing))
    else:
        yield from (_value(thing), "")


def _class_head(cls: type) -> str:
    """Its fields as they stand in the source, with their comments; of a class without fields its constructor's arguments."""
    source = textwrap.dedent(inspect.getsource(cls))
    (node,) = ast.parse(source).body
    lines = source.splitlines()
    assert isinstance(node, ast.ClassDef)
    fields = [line for each in node.body if isinstance(each, ast.AnnAssign) for line in lines[each.lineno - 1 : each.end_lineno]]
    public = [line for line in fields if not line.strip().startswith("_")]
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object and base.__module__ != "typing")
    head = f"class {cls.__name__}" + (f"({bases})" if bases else "")
    if public or "__init__" not in vars(cls):
        return "\n".join([f"{head}:", *public]) if public else f"{head}: ..."
    return f"class {cls.__name__}{_signature(cls.__init__, len(cls.__name__) + 6)}".removesuffix(" -> None")


def _signature(function: Any, indent: int) -> str:
    """Its arguments without the object itself, and what it returns, as in the source; an argument a line where one line is too short."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = _arguments(node.args)
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"({', '.join(arguments)}){result}"
    if indent + len(line) <= LINE:
        return line
    return "(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"


def _arguments(given: ast.arguments) -> list[str]:
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    shown = [_argument(one, default) for one, default in zip(positional, defaults, strict=True) if one.arg not in ("self", "cls")]
    if given.vararg:
        shown.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        shown.append("*")
    shown += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*shown, f"**{_argument(given.kwarg, None)}"] if given.kwarg else shown


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    typed = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    return f"{typed} = {ast.unparse(default)}" if default else typed


def _value(thing: Any) -> str:
    if isinstance(thing, (set, frozenset, dict)):
        thing = tuple(sorted(thing) if not isinstance(thing, dict) else thing)
    if isinstance(thing, tuple):
        return ", ".join(f"`{getattr(each, '__name__', each)}`" for each in thing)
    return f"`{thing}`".replace("typing.", "").replace("collections.abc.", "")


def _code(text: str) -> Iterator[str]:
    yield from ("```python", text, "```", "")


def _prose(text: str) -> Iterator[str]:
    """A docstring as Markdown: sections become lists, what is indented or drawn becomes a block."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        first, _, rest = paragraph.partition("\n")
        if first.rstrip(":") in SECTIONS and first.endswith(":") and rest:
            yield from (f"{first}", "", *_items(textwrap.dedent(rest)), "")
        elif paragraph.startswith("    ") or "──" in paragraph:
            yield from ("```text", textwrap.dedent(paragraph), "```", "")
        elif paragraph:
            yield from (paragraph, "")


def _items(text: str) -> Iterator[str]:
    for line in text.splitlines():
        name, colon, rest = line.partition(": ")
        is_item = colon and not line.startswith(" ")
        yield f"- `{name}`: {rest}" if is_item else f"  {line.strip()}"
