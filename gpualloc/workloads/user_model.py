"""Models of the user's own: `package.module:factory`, where factory(case) returns (model, make_batch, loss).

model       nn.Module, on the CPU in fp32; it is built inside a seeded generator, so that every rank gets the same weights
make_batch  make_batch(generator) -> (inputs, targets), two CPU tensors of `case.per_device_batch_size` samples each
loss        loss(outputs, targets) -> scalar, where outputs = model(inputs), widened to fp32
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gpualloc.errors import UsageError
from gpualloc.records import BenchCase

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_CONTRACT = "a factory takes the case and returns (model, make_batch, loss): see docs/bench.md, Models"

Batch: TypeAlias = "tuple[Tensor, Tensor]"


class UserWorkload(NamedTuple):
    """What a factory returned."""

    model: nn.Module
    make_batch: Callable[[torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]


_batch_makers: dict[str, Callable[[torch.Generator], Batch]] = {}  # case key -> of the model built last, which is not built again for it


def check_factory(name: str) -> Callable[[BenchCase], Any]:
    """The factory of that name, imported; the working directory is searched last.

    Raises:
        UsageError: there is no such module, it fails when imported, or has no such function.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UsageError(f"model {name!r} is not of the form package.module:factory; write for example my_models:make_classifier")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when imported
        raise UsageError(
            f"model {name!r}: module {module_name} cannot be imported: {type(error).__name__}: {error}; {_way_out(module_name, error)}"
        ) from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise UsageError(f"model {name!r}: module {module_name} has no {attribute}; {_CONTRACT}")
    if not callable(factory):
        raise UsageError(f"model {name!r}: {attribute} is a {type(factory).__name__}, not a function; {_CONTRACT}")
    try:
        inspect.signature(factory).bind(None)
    except TypeError as error:
        raise UsageError(f"model {name!r}: {attribute} cannot be called with one argument: {error}; {_CONTRACT}") from error
    except ValueError:  # it has no signature, as some of C do not
        pass
    checked: Callable[[BenchCase], Any] = factory
    return checked


def _way_out(module_name: str, error: Exception) -> str:
    """What to do about a module that was not imported: it is elsewhere, it needs another one, or it fails by itself."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return f"where in it, shows python -c 'import {module_name}'"
    if f"{module_name}.".startswith(f"{error.name}."):
        return "run gpualloc from the folder that holds it, or add that to PYTHONPATH"
    return f"install the package that has {error.name} beside gpualloc, and try again"


def build_user_model(case: BenchCase) -> UserWorkload:
    """What the case's factory returns, checked.

    Raises:
        UsageError: something else than the three parts.
    """
    from torch import nn

    returned = check_factory(case.model)(case)
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise UsageError(f"model {case.model!r}: the factory returned {_describe(returned)}; {_CONTRACT}")
    workload = UserWorkload(*returned)
    if not isinstance(workload.model, nn.Module):
        raise UsageError(f"model {case.model!r}: the factory's model is {_describe(workload.model)}, not an nn.Module; {_CONTRACT}")
    for part in ("make_batch", "loss"):
        if not callable(getattr(workload, part)):
            raise UsageError(
                f"model {case.model!r}: the factory's {part} is {_describe(getattr(workload, part))}, no function; {_CONTRACT}"
            )
    _batch_makers[case.key()] = workload.make_batch
    return workload


def make_user_batches(case: BenchCase, *, count: int, generator: torch.Generator) -> list[Batch]:
    """So many batches of the user's.

    Raises:
        UsageError: they are not two tensors of as many samples as the case asks for.
    """
    make_batch = _batch_makers.get(case.key()) or build_user_model(case).make_batch
    batches = [make_batch(generator) for _ in range(count)]
    for batch in batches:
        _check_batch(case, batch)
    return batches


def _check_batch(case: BenchCase, batch: Any) -> None:
    from torch import Tensor

    if not isinstance(batch, tuple) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise UsageError(f"model {case.model!r}: make_batch returned {_describe(batch)}, not (inputs, targets); {_CONTRACT}")
    for name, part in zip(("inputs", "targets"), batch, strict=True):
        if part.dim() == 0 or len(part) != case.per_device_batch_size:
            raise UsageError(
                f"model {case.model!r}: {name} of make_batch have shape {list(part.shape)}; their first dimension must be "
                f"case.per_device_batch_size, which is {case.per_device_batch_size}"
            )


def _describe(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
