"""Which parts of a program run once a training step, without a condition that makes them rare."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpualloc.doctor.script.program import Module, Program, assigned, last_name, names_in

_RANK = re.compile(r"rank|is_(local_)?(main|master|world_process_zero)|main_process", re.IGNORECASE)
_Loop = (ast.For, ast.While, ast.AsyncFor)
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Step:
    """The body of a loop, or of a function, that runs once a step."""

    module: Module
    owner: ast.AST
    losses: frozenset[str]  # names that `backward` is called on, as tensors

    def nodes(self) -> Iterator[ast.AST]:
        """Everything in it that runs at every step, statements and expressions."""
        body: Sequence[ast.stmt] = self.owner.body  # type: ignore[attr-defined]
        yield from _always(body)


def find_steps(program: Program) -> list[Step]:
    """Loops with a backward pass and an optimizer step, and functions that are called in a loop and do the backward pass."""
    owners: dict[ast.AST, Module] = {}
    functions: dict[str, list[tuple[Module, ast.AST]]] = {}
    for module, call in program.calls("backward"):
        loops = _loops_around(module, call)
        if loops:
            owners[loops[0]] = module
            # Micro-batches have a loop of their own: the step is the loop around them.
            for loop in loops[1:]:
                if _has_step(loops[0]) or not _has_step(loop):
                    break
                owners[loop] = module
                break
        else:
            scope = module.scope(call)
            if isinstance(scope, _Function):
                functions.setdefault(scope.name, []).append((module, scope))
    for module, node in program.nodes():
        if isinstance(node, _Function) and node.name == "training_step":  # Lightning's
            owners[node] = module
        if isinstance(node, ast.Call) and last_name(node.func) in functions:
            loops = _loops_around(module, node)
            if loops:
                owners[loops[0]] = module
                owners.update({function: where for where, function in functions[last_name(node.func)]})
    return [Step(module, owner, _losses(module, owner)) for owner, module in owners.items()]


def _loops_around(module: Module, node: ast.AST) -> list[ast.AST]:
    """Innermost first, within the node's own function."""
    loops: list[ast.AST] = []
    while node in module.parents and not isinstance(node, _Function):
        node = module.parents[node]
        if isinstance(node, _Loop):
            loops.append(node)
    return loops


def _has_step(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) == "step" for part in ast.walk(node))


def _losses(module: Module, owner: ast.AST) -> frozenset[str]:
    """Tensors only: a name that is made a number of somewhere is left out."""
    found: set[str] = set()
    for node in ast.walk(owner):
        if isinstance(node, ast.Call) and last_name(node.func) == "backward" and isinstance(node.func, ast.Attribute):
            what = node.args[0] if node.args else node.func.value
            found |= names_in(what) - {name for name in map(_owner_of_method, ast.walk(what)) if name}  # scaler of scaler.scale(loss)
    if isinstance(owner, _Function) and owner.name == "training_step":
        found |= {node.value.id for node in ast.walk(owner) if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)}
    numbers = {name for name, value in assigned(ast.walk(owner)) if _is_number(value)}
    return frozenset(found - numbers)


def _owner_of_method(node: ast.AST) -> str | None:
    """ "a" of a call `a.b()`."""
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    return node.func.value.id if is_method else None  # type: ignore[attr-defined]


def _is_number(value: ast.AST) -> bool:
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and last_name(value.func) in ("item", "float", "int"))


def _always(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield _Test(statement)
            yield from _parts(statement.test)
            if is_rank_check(statement.test):
                yield from _always(statement.body)
                yield from _always(statement.orelse)
            elif isinstance(statement.body[-1], ast.Continue) and any(isinstance(part, ast.Mod) for part in ast.walk(statement.test)):
                return  # what follows runs now and then
        elif isinstance(statement, _Loop):
            yield from _parts(statement.iter if not isinstance(statement, ast.While) else statement.test)
            yield from _always(statement.body)
        elif isinstance(statement, (ast.With, ast.AsyncWith)):
            for item in statement.items:
                yield from _parts(item.context_expr)
            yield from _always(statement.body)
        elif isinstance(statement, ast.Try):
            yield from _always([*statement.body, *statement.orelse, *statement.finalbody])
        elif not isinstance(statement, (*_Function, ast.ClassDef)):
            yield from _parts(statement)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """It and its parts, without lambdas and without what a condition inside the expression may leave out."""
    if isinstance(node, ast.Lambda):
        return
    yield node
    if isinstance(node, ast.IfExp) and not is_rank_check(node.test):
        yield from _parts(node.test)
    elif isinstance(node, ast.BoolOp):
        yield from _parts(node.values[0])
    else:
        for child in ast.iter_child_nodes(node):
            yield from _parts(child)


def is_rank_check(test: ast.AST) -> bool:
    """`rank == 0` and the like: one rank that waits makes all of them wait."""
    parts = [last_name(part) for part in ast.walk(test) if isinstance(part, (ast.Name, ast.Attribute))]
    if any(isinstance(part, (ast.Mod, ast.BoolOp)) for part in ast.walk(test)):
        return False
    return any(_RANK.search(name) for name in parts)


class _Test(ast.expr):
    """Stands for the condition of an `if`, which turns a tensor into a Python value."""

    _fields = ("test",)

    def __init__(self, statement: ast.If) -> None:
        super().__init__()
        self.test = statement.test
        self.lineno = statement.lineno


def tested(node: ast.AST) -> ast.AST | None:
    """The condition that a node of `Step.nodes` stands for, if it does."""
    return node.test if isinstance(node, (_Test, ast.Assert)) else None
