"""What must change with the number of ranks: the learning rate or the batch, and the averages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from gpualloc.doctor.finding import Finding
from gpualloc.doctor.script.program import Program, keyword, last_name, words
from gpualloc.doctor.script.steps import find_steps

_OPTIMIZERS = {
    "SGD",
    "Adam",
    "AdamW",
    "RMSprop",
    "Adagrad",
    "Adamax",
    "NAdam",
    "RAdam",
    "LBFGS",
    "Adadelta",
    "Adafactor",
    "Muon",
    "ZeroRedundancyOptimizer",
}
_RATE_OR_BATCH = re.compile(r"(^|_)(lr|learning_?rate)(_|$)|batch|(^|_)bsz?($|_)|accum", re.IGNORECASE)
_WHOLE_BATCH = re.compile(r"(global|effective|total)_batch", re.IGNORECASE)
_BATCH_SIZE = re.compile(r"DataLoader|batch_?size", re.IGNORECASE)
_SCALES = (ast.Mult, ast.Div, ast.FloorDiv, ast.Pow)


def check_rescaling(program: Program) -> Iterator[Finding]:
    """Neither the batch nor the learning rate depends on the number of ranks, so that more of them train another way."""
    if program.frameworks or not program.is_distributed or any(_WHOLE_BATCH.search(word) for word in program.identifiers):
        return
    if not any(_BATCH_SIZE.search(word) for word in program.identifiers):
        return
    if any(_rescales(program, node) for _, node in program.nodes() if isinstance(node, ast.stmt)):
        return
    for module, call in program.calls(*_OPTIMIZERS):
        rate = keyword(call, "lr") or (call.args[1] if len(call.args) > 1 else None)
        if module.is_ignored(call, "rescaling"):
            continue
        given = f"lr={module.text(rate)}" if rate is not None else "the default learning rate"
        yield Finding(
            name="rescaling",
            status="WARN",
            seen=f"{module.callee(call)} with {given}: the batch of a step grows with every rank, and neither it nor the rate is rescaled",
            advice="divide the batch size by dist.get_world_size(), or scale the rate with it and warm up (SGD: linear, Goyal et al. 2017, "
            "arXiv:1706.02677; Adam: about its square root); if it is so on purpose: # gpualloc: ignore[rescaling]",
            place=module.place(call),
        )


def check_accumulation(program: Program) -> Iterator[Finding]:
    """Gradients of several backward passes are summed and the loss is not divided by their number."""
    if program.frameworks & {"lightning", "pytorch_lightning", "accelerate"}:
        return
    for step in find_steps(program):
        scope = step.module.scope(step.owner)
        for node in ast.walk(step.owner):
            if not isinstance(node, ast.If) or not any(_is_optimizer_step(part) for part in ast.walk(node)):
                continue
            number = next(
                (part.right for part in ast.walk(node.test) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod)), None
            )
            if number is None or any(isinstance(part, ast.Call) and last_name(part.func) == "backward" for part in ast.walk(node)):
                continue
            if _is_divided_by(scope, number) or step.module.is_ignored(node, "accumulation"):
                continue
            what = step.module.text(number)
            yield Finding(
                name="accumulation",
                status="WARN",
                seen=f"the optimizer steps every {what} backward passes and the loss is divided by {what} nowhere: gradients are summed",
                advice=f"(loss / {what}).backward(), and no_sync() for the passes between",
                place=step.module.place(node),
            )


def check_divided_twice(program: Program) -> Iterator[Finding]:
    """A loss divided by the number of ranks before the backward pass, where DDP averages gradients already."""
    if not any(True for _ in program.calls("DistributedDataParallel", "fully_shard", "FullyShardedDataParallel")):
        return
    for step in find_steps(program):
        parts = list(ast.walk(step.owner))
        last_backward = max((part.lineno for part in parts if isinstance(part, ast.Call) and last_name(part.func) == "backward"), default=0)
        for node in parts:
            if getattr(node, "lineno", 0) > last_backward:  # a copy for the log
                continue
            value = _loss_divided_by_ranks(program, step.losses, node)
            if value is not None and not step.module.is_ignored(node, "loss-average"):
                yield Finding(
                    name="loss-average",
                    status="WARN",
                    seen=f"{step.module.text(value)} before the backward pass: DDP divides gradients by the number of ranks as well",
                    advice="leave the division out; to log a mean over ranks, divide a detached copy",
                    place=step.module.place(node),
                )


def _rescales(program: Program, statement: ast.stmt) -> bool:
    """A product, quotient or power of the number of ranks in a statement about rates or batches."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.While, ast.With, ast.Try)):
        return False  # their own statements are looked at
    scaled = [part for part in ast.walk(statement) if isinstance(part, (ast.BinOp, ast.AugAssign)) and isinstance(part.op, _SCALES)]
    return any(program.is_world_size(part) for part in scaled) and any(_RATE_OR_BATCH.search(word) for word in words(statement))


def _is_optimizer_step(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "step"):
        return False
    name = last_name(node.func.value).lower()
    return "opt" in name or "scaler" in name


def _is_divided_by(scope: ast.AST, number: ast.expr) -> bool:
    wanted = ast.dump(number)
    for part in ast.walk(scope):
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div) and ast.dump(part.right) == wanted:
            return True
        if isinstance(part, ast.AugAssign) and isinstance(part.op, ast.Div) and ast.dump(part.value) == wanted:
            return True
        if isinstance(part, ast.Call) and last_name(part.func) in ("div", "div_") and any(ast.dump(each) == wanted for each in part.args):
            return True
    return False


def _loss_divided_by_ranks(program: Program, losses: frozenset[str], node: ast.AST) -> ast.AST | None:
    """The division, in `loss = loss / world_size`, `loss /= world_size` or `(loss / world_size).backward()`."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div) and last_name(node.target) in losses:
        return node if program.is_world_size(node.value) else None
    if isinstance(node, ast.Assign) and any(last_name(target) in losses for target in node.targets):
        value: ast.AST = node.value
    elif isinstance(node, ast.Call) and last_name(node.func) == "backward" and isinstance(node.func, ast.Attribute):
        value = node.args[0] if node.args else node.func.value
    else:
        return None
    parts = [part for part in ast.walk(value) if isinstance(part, ast.BinOp)]
    if any(isinstance(part.op, ast.Mult) for part in parts):  # such as loss * world_size / num_tokens, which is right
        return None
    return next((part for part in parts if isinstance(part.op, ast.Div) and program.is_world_size(part.right)), None)
