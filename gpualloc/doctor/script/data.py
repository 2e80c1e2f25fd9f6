"""How the script reads its data: samplers, workers, pinned memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpualloc.doctor.finding import Finding
from gpualloc.doctor.script.program import Module, Program, assigned, is_constant, keyword, last_name

_IN_MEMORY = {"TensorDataset", "range", "list"}
_OWN_SHARDING = ("Sampler", "shard", "split_dataset", "IterableDataset", "WebDataset", "prepare", "rank")


def check_set_epoch(program: Program) -> Iterator[Finding]:
    """A DistributedSampler that shuffles and is never told the epoch deals out the same order in each."""
    if program.frameworks or any(True for _ in program.calls("set_epoch")) or not any(True for _ in program.calls("backward")):
        return
    for module, call in program.calls("DistributedSampler"):
        if is_constant(keyword(call, "shuffle"), False) or module.is_ignored(call, "set-epoch"):
            continue
        yield Finding(
            name="set-epoch",
            status="WARN",
            seen=f"{module.text(call)} shuffles, and set_epoch is called nowhere: every epoch has the same order",
            advice="call sampler.set_epoch(epoch) at the start of every epoch",
            place=module.place(call),
        )


def check_sampler(program: Program) -> Iterator[Finding]:
    """A loader that shuffles for itself on every rank, so that ranks do not divide the data."""
    if program.frameworks or not program.is_distributed:
        return
    if any(
        part in word
        for word in program.identifiers
        if word not in ("local_rank", "LOCAL_RANK", "get_rank", "RANK")
        for part in _OWN_SHARDING
    ):
        return
    for module, call in program.calls("DataLoader"):
        if is_constant(keyword(call, "shuffle"), True) and not module.is_ignored(call, "sampler"):
            yield Finding(
                name="sampler",
                status="WARN",
                seen=f"{module.text(call)} in a distributed script: every rank goes through all of the data",
                advice="give it sampler=DistributedSampler(dataset) instead of shuffle=True, and call its set_epoch",
                place=module.place(call),
            )


def check_pin_memory(program: Program) -> Iterator[Finding]:
    """A loader without pinned memory in a script that uses GPUs: copies wait for the CPU and do not overlap."""
    if not program.uses_gpu:
        return
    for module, call in _loaders(program):
        if not is_constant(keyword(call, "pin_memory") or ast.Constant(False), False) or module.is_ignored(call, "pin-memory"):
            continue
        yield Finding(
            name="pin-memory",
            status="WARN",
            seen=f"{module.text(call)} without pin_memory",
            advice="pin_memory=True, and .to(device, non_blocking=True), let the copy run beside the step",
            place=module.place(call),
        )


def check_num_workers(program: Program) -> Iterator[Finding]:
    """A loader whose samples are made in the training process itself, between steps."""
    for module, call in _loaders(program):
        workers = keyword(call, "num_workers")
        if workers is None and len(call.args) > 5:  # DataLoader(dataset, batch_size, shuffle, sampler, batch_sampler, num_workers)
            workers = call.args[5]
        if not is_constant(workers or ast.Constant(0), 0) or module.is_ignored(call, "num-workers") or _is_in_memory(module, call):
            continue
        yield Finding(
            name="num-workers",
            status="WARN",
            seen=f"{module.text(call)} loads in the training process: the GPU waits for every batch",
            advice="num_workers=4 or so for each rank, with persistent_workers=True; gpualloc profile shows what waiting remains",
            place=module.place(call),
        )


def _loaders(program: Program) -> Iterator[tuple[Module, ast.Call]]:
    """DataLoaders whose options are all to be seen: no **options."""
    for module, call in program.calls("DataLoader"):
        if (call.args or call.keywords) and all(each.arg is not None for each in call.keywords):
            yield module, call


def _is_in_memory(module: Module, call: ast.Call) -> bool:
    """Tensors that are there already: workers would only copy them."""
    dataset = call.args[0] if call.args else keyword(call, "dataset")
    candidates = [dataset]
    if isinstance(dataset, ast.Name):
        candidates += [value for name, value in assigned(ast.walk(module.tree)) if name == dataset.id]
    return any(
        isinstance(value, (ast.List, ast.ListComp, ast.Tuple)) or (isinstance(value, ast.Call) and last_name(value.func) in _IN_MEMORY)
        for value in candidates
    )
