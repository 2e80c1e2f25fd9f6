"""Averages over ranks and over an epoch: sums that are never divided, and sums divided by the wrong count."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from gpualloc.doctor.finding import Finding
from gpualloc.doctor.script.program import Program, assigned, keyword, last_name, names_in, words

_LOSS = re.compile(r"loss", re.IGNORECASE)
_GRADIENT = re.compile(r"^grad$")
_COUNT = re.compile(r"size|^len$|numel|count|shape|batch|^bs$|^n$", re.IGNORECASE)
_SAMPLES = re.compile(r"dataset|(^|_)data$|(train|val|valid|test)_?(set|data)$", re.IGNORECASE)
_BATCHES = re.compile(r"loader|batches|(^|_)dl$", re.IGNORECASE)
_REDUCTIONS = ("all_reduce", "reduce", "all_gather", "gather", "all_gather_object", "gather_for_metrics")


def check_summed_gradients(program: Program) -> Iterator[Finding]:
    """Gradients all-reduced by hand as a sum, and divided nowhere in that function."""
    for module, call in program.calls("all_reduce"):
        if not call.args or not any(_GRADIENT.search(word) for word in words(call.args[0])) or _is_mean(call):
            continue
        if _has_division(module.scope(call)) or module.is_ignored(call, "loss-average"):
            continue
        yield Finding(
            name="loss-average",
            status="FAIL",
            seen=f"{module.text(call)} sums gradients and nothing divides them: a step is as many times too long as there are ranks",
            advice="op=dist.ReduceOp.AVG, or divide by dist.get_world_size(); DistributedDataParallel does both, overlapped",
            place=module.place(call),
        )


def check_summed_loss(program: Program) -> Iterator[Finding]:
    """A loss all-reduced as a sum that is told as if it were the mean."""
    for module, call in program.calls("all_reduce"):
        if not call.args or _is_mean(call):
            continue
        scope = module.scope(call)
        name = last_name(call.args[0])
        if not name or not _is_loss(scope, name) or module.is_ignored(call, "loss-average"):
            continue
        if _is_divided(scope, _aliases(scope, name)) or _is_returned_and_divided(program, scope, name):
            continue
        yield Finding(
            name="loss-average",
            status="WARN",
            seen=f"{module.text(call)} sums over ranks, and {name} is divided by nothing afterwards",
            advice="op=dist.ReduceOp.AVG, or divide by dist.get_world_size(); with unequal batches sum the loss and the count, then divide",
            place=module.place(call),
        )


def check_wrong_count(program: Program) -> Iterator[Finding]:
    """A sum of batch means divided by samples, a sum over samples divided by batches, or one rank's sum by everyone's samples."""
    if any(word == "reduction" for word in program.identifiers):  # then a batch's loss may be a sum
        return
    is_shared = any(True for _ in program.calls("DistributedSampler"))
    for module, node in program.nodes():
        if not (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and isinstance(node.target, ast.Name)):
            continue
        if not any(_LOSS.search(word) for word in (node.target.id, *words(node.value))):
            continue
        scope, name = module.scope(node), node.target.id
        is_weighted = any(
            isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult) and any(_COUNT.search(word) for word in words(part))
            for part in ast.walk(node.value)
        )
        for division, divisor in _divisions(scope, name):
            counted = _what_len_counts(divisor)
            problem = _problem(is_weighted, counted, is_shared and not _is_reduced(scope, name))
            if problem is not None and not module.is_ignored(division, "loss-average"):
                what, advice = problem
                seen = f"{module.text(division)}: {what}"
                yield Finding(name="loss-average", status="WARN", seen=seen, advice=advice, place=module.place(division))


def _problem(is_weighted: bool, counted: str | None, is_one_ranks: bool) -> tuple[str, str] | None:
    if not is_weighted and counted == "samples":
        return "a sum of batch means divided by the number of samples is too small by the batch size", "divide by len(loader)"
    if is_weighted and counted == "batches":
        return "a sum over samples divided by the number of batches is too large by the batch size", "divide by the samples seen"
    if is_weighted and counted == "samples" and is_one_ranks:
        return "this rank saw its share of the samples only", "divide by len(sampler), or all-reduce the sum and the count first"
    return None


def _is_loss(scope: ast.AST, name: str) -> bool:
    if _LOSS.search(name):
        return True
    values = [value for target, value in assigned(ast.walk(scope)) if target == name]
    return any(_LOSS.search(word) for value in values for word in words(value))


def _aliases(scope: ast.AST, name: str) -> set[str]:
    """The name, and names assigned from it."""
    found = {name}
    for _ in range(3):
        found |= {target for target, value in assigned(ast.walk(scope)) if names_in(value) & found}
    return found


def _is_divided(scope: ast.AST, names: set[str]) -> bool:
    for part in ast.walk(scope):
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div) and (names_in(part.left) | set(words(part.left))) & names:
            return True
        if isinstance(part, ast.AugAssign) and isinstance(part.op, ast.Div) and (names_in(part.target) | set(words(part.target))) & names:
            return True
        if isinstance(part, ast.Call) and last_name(part.func) in ("div", "div_") and set(words(part.func)) & names:
            return True
    return False


def _is_returned_and_divided(program: Program, scope: ast.AST, name: str) -> bool:
    """The function sums and its callers divide."""
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    returns = any(isinstance(part, ast.Return) and part.value is not None and name in names_in(part.value) for part in ast.walk(scope))
    is_parameter = any(argument.arg == name for argument in scope.args.args)
    if not (returns or is_parameter):
        return False
    for module, call in program.calls(scope.name):
        statement: ast.AST = call
        while statement in module.parents and not isinstance(statement, ast.stmt):
            if isinstance(statement, ast.BinOp) and isinstance(statement.op, ast.Div):
                return True
            statement = module.parents[statement]
        around = module.scope(call)
        given = {argument.id for argument in call.args if isinstance(argument, ast.Name)}
        targets = {target for target, value in assigned(ast.walk(around)) if any(part is call for part in ast.walk(value))}
        if _is_divided(around, given | targets):
            return True
    return False


def _is_mean(call: ast.Call) -> bool:
    operation = keyword(call, "op") or (call.args[1] if len(call.args) > 1 else None)
    if isinstance(operation, ast.Constant):  # accelerator.reduce's "mean"
        return str(operation.value).lower() not in ("sum",)
    return operation is not None and last_name(operation) != "SUM"


def _has_division(scope: ast.AST) -> bool:
    return any(
        (isinstance(part, (ast.BinOp, ast.AugAssign)) and isinstance(part.op, (ast.Div, ast.Mult)))
        or (isinstance(part, ast.Call) and last_name(part.func) in ("div", "div_", "mul_", "_foreach_div_", "_foreach_mul_"))
        for part in ast.walk(scope)
    )


def _divisions(scope: ast.AST, name: str) -> Iterator[tuple[ast.AST, ast.expr]]:
    for part in ast.walk(scope):
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div) and name in names_in(part.left):
            yield part, part.right
        elif isinstance(part, ast.AugAssign) and isinstance(part.op, ast.Div) and last_name(part.target) == name:
            yield part, part.value


def _what_len_counts(divisor: ast.expr) -> str | None:
    if not (isinstance(divisor, ast.Call) and last_name(divisor.func) == "len" and divisor.args):
        return None
    name = last_name(divisor.args[0])
    return "samples" if _SAMPLES.search(name) else "batches" if _BATCHES.search(name) else None


def _is_reduced(scope: ast.AST, name: str) -> bool:
    names = _aliases(scope, name)
    return any(isinstance(part, ast.Call) and last_name(part.func) in _REDUCTIONS and names_in(part) & names for part in ast.walk(scope))
