"""What makes every step wait: reading values back from the GPU, searching for unused parameters, copying the model to the other GPUs."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpualloc.doctor.finding import Finding
from gpualloc.doctor.script.program import Program, is_constant, keyword, last_name, names_in, root_name
from gpualloc.doctor.script.steps import Step, find_steps, tested

_LOGGING = {"print", "info", "debug", "warning", "error", "write", "set_description", "set_postfix_str"}
_WAITING_CALLS = {("cuda", "synchronize"), ("accelerator", "synchronize"), ("cuda", "empty_cache")}
_HOST_LIBRARIES = {"np", "numpy", "pd", "os", "time"}
_TESTS = {"isnan", "isfinite", "isinf"}


def check_sync_points(program: Program) -> Iterator[Finding]:
    """Values read back from the GPU at every step: the CPU waits for the GPU and then the GPU for the CPU."""
    if not program.uses_gpu:
        return
    seen: dict[str, tuple[Step, ast.AST, list[str]]] = {}
    for step in find_steps(program):
        for node in step.nodes():
            what = _why_waiting(step, node)
            if what is not None and not step.module.is_ignored(node, "sync-point"):
                texts = seen.setdefault(step.module.place(node), (step, node, []))[2]
                if what not in texts:
                    texts.append(what)
    for place, (_, _, texts) in seen.items():
        yield Finding(
            name="sync-point",
            status="WARN",
            seen=f"{', '.join(texts)} at every step: the CPU waits for the GPU, which then has nothing queued",
            advice="keep the tensor (loss.detach()) and read it every so many steps, or after the epoch",
            place=place,
        )


def check_data_parallel(program: Program) -> Iterator[Finding]:
    """nn.DataParallel: at every step the model is copied to each GPU, by threads that are new and for which cuDNN plans again."""
    for module, node in program.calls("DataParallel"):
        if not module.is_ignored(node, "data-parallel"):
            yield Finding(
                name="data-parallel",
                status="WARN",
                seen="DataParallel copies the model to every GPU at each step, in new threads in which cuDNN plans its convolutions again",
                advice="DistributedDataParallel under torchrun, also on one machine: with DataParallel a step of MobileNet v2 (100 px) on "
                "two H100 took 4 times as long in FP32, and 59 times in FP16",
                place=module.place(node),
            )


def check_unused_parameters(program: Program) -> Iterator[Finding]:
    """find_unused_parameters=True: the graph is searched at every step, and buckets are not rebuilt in the order of use."""
    for module, node in program.nodes():
        if isinstance(node, ast.Call):
            on = [each.value for each in node.keywords if each.arg in ("find_unused_parameters", "ddp_find_unused_parameters")]
            is_on = any(is_constant(value, True) for value in on) or is_constant(
                keyword(node, "strategy"), "ddp_find_unused_parameters_true"
            )
            strategy = keyword(node, "strategy")
            is_on |= isinstance(strategy, ast.Constant) and strategy.value == "ddp_find_unused_parameters_true"
            place = on[0] if on else node
            if is_on and not module.is_ignored(place, "unused-parameters") and not module.is_ignored(node, "unused-parameters"):
                yield Finding(
                    name="unused-parameters",
                    status="WARN",
                    seen="find_unused_parameters is on: the whole graph is searched at every step",
                    advice="leave it out: if DDP then says that parameters were not used, they are worth finding; with a graph that "
                    "never changes static_graph=True does without the search",
                    place=module.place(place),
                )


def _why_waiting(step: Step, node: ast.AST) -> str | None:
    test = tested(node)
    if test is not None:
        return _why_test_waits(step, test)
    if isinstance(node, ast.FormattedValue):
        return f"{{{step.module.text(node.value)}}} in a text" if _is_loss(step, node.value) else None
    if not isinstance(node, ast.Call):
        return None
    name = last_name(node.func)
    if isinstance(node.func, ast.Attribute):
        receiver = node.func.value
        if name in ("item", "cpu") and not node.args and root_name(receiver) not in _HOST_LIBRARIES:
            return step.module.text(node)
        if name == "to" and node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == "cpu":
            return None if keyword(node, "non_blocking") is not None else step.module.text(node)
        if (last_name(receiver), name) in _WAITING_CALLS:
            return step.module.text(node)
        if name in ("tolist", "numpy") and _is_loss(step, receiver):
            return step.module.text(node)
    elif name in ("float", "int", "bool") and node.args and _is_loss(step, node.args[0]):
        return step.module.text(node)
    if name in _LOGGING and any(_is_loss(step, argument) for argument in node.args):
        return step.module.text(node)
    return None


def _why_test_waits(step: Step, test: ast.AST) -> str | None:
    for part in ast.walk(test):
        is_compared = isinstance(part, ast.Compare) and not any(isinstance(operator, (ast.Is, ast.IsNot)) for operator in part.ops)
        if is_compared and any(_is_loss(step, side) for side in (part.left, *part.comparators)):  # type: ignore[attr-defined]
            return f"a branch on {step.module.text(part)}"
        if isinstance(part, ast.Call) and last_name(part.func) in _TESTS and names_in(part) & step.losses:
            return f"a branch on {step.module.text(part)}"
    return None


def _is_loss(step: Step, node: ast.AST) -> bool:
    """The tensor itself, or a part or a view of it; not what a call makes of it."""
    while isinstance(node, (ast.Attribute, ast.Subscript)) or (
        isinstance(node, ast.Call) and last_name(node.func) in ("detach", "mean", "sum", "clone") and isinstance(node.func, ast.Attribute)
    ):
        node = node.func.value if isinstance(node, ast.Call) else node.value  # type: ignore[attr-defined]
    return isinstance(node, ast.Name) and node.id in step.losses
