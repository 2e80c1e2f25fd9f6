"""A training script as syntax trees: the file and the modules beside it that it imports. Nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gpualloc.errors import UsageError

_MAX_MODULES = 50
_IGNORE = re.compile(r"#\s*gpualloc:\s*ignore(?:\[([\w\s,-]+)\])?")
_FRAMEWORKS = {"lightning", "pytorch_lightning", "accelerate", "transformers", "ray", "composer", "ignite", "fastai"}
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "fully_shard", "init_process_group", "DDPStrategy"}
_WORLD = re.compile(
    r"world_?size|num_replicas|num_processes|n_?gpus|num_gpus|device_count|num_devices|dp_size|nproc|data_parallel_size", re.IGNORECASE
)


class Module:
    """One file: its tree, who is whose parent, and what imported names are really called."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.tree = ast.parse(text, filename=str(path))
        self.parents = {child: parent for parent in ast.walk(self.tree) for child in ast.iter_child_nodes(parent)}
        self.real_names: dict[str, str] = {}
        self.imported: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.imported.add(node.module or "")
                self.real_names |= {alias.asname: alias.name for alias in node.names if alias.asname}
                if node.level or node.module is None:
                    self.imported |= {alias.name for alias in node.names}

    def place(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}"

    def is_ignored(self, node: ast.AST, rule: str) -> bool:
        """Whether its line says `# gpualloc: ignore` or `# gpualloc: ignore[RULE, ...]`."""
        line = self.lines[getattr(node, "lineno", 1) - 1]
        found = _IGNORE.search(line)
        return found is not None and (found[1] is None or rule in {name.strip() for name in found[1].split(",")})

    def callee(self, call: ast.Call) -> str:
        """The last part of what is called, by its real name: "DistributedDataParallel" of `DDP(...)`."""
        name = last_name(call.func)
        return self.real_names.get(name, name) if isinstance(call.func, ast.Name) else name

    def scope(self, node: ast.AST) -> ast.AST:
        """The function around the node, else the module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return node
        return self.tree

    def text(self, node: ast.AST, max_chars: int = 50) -> str:
        """Its source on one line."""
        source = " ".join(ast.unparse(node).split())
        return source if len(source) <= max_chars else source[: max_chars - 1] + "…"


@dataclass(frozen=True)
class Program:
    modules: tuple[Module, ...]  # the script first

    def calls(self, *names: str) -> Iterator[tuple[Module, ast.Call]]:
        """Calls of what has one of these names."""
        for module in self.modules:
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call) and module.callee(node) in names:
                    yield module, node

    def nodes(self) -> Iterator[tuple[Module, ast.AST]]:
        for module in self.modules:
            for node in ast.walk(module.tree):
                yield module, node

    @cached_property
    def frameworks(self) -> set[str]:
        """Of those that make the sampler, the loop or the averaging themselves."""
        return {name.split(".")[0] for module in self.modules for name in module.imported} & _FRAMEWORKS

    @cached_property
    def is_distributed(self) -> bool:
        return any(True for _ in self.calls(*_WRAPPERS))

    @cached_property
    def uses_gpu(self) -> bool:
        return bool(self.frameworks) or any(
            (isinstance(node, ast.Constant) and isinstance(node.value, str) and "cuda" in node.value)
            or (isinstance(node, ast.Attribute) and node.attr in ("cuda", "accelerator", "local_rank"))
            for _, node in self.nodes()
        )

    @cached_property
    def identifiers(self) -> set[str]:
        """Every name, attribute, keyword and short string in it."""
        return {word for _, node in self.nodes() for word in words(node, is_deep=False)}

    @cached_property
    def world_names(self) -> set[str]:
        """Names that hold the number of ranks under another name: `n` of `n = dist.get_world_size()`."""
        found = set()
        for _, node in self.nodes():
            if isinstance(node, ast.Assign) and any(_WORLD.search(word) for word in words(node.value)):
                if any(isinstance(part, (ast.List, ast.Tuple, ast.Dict)) for part in ast.walk(node.value)):
                    continue
                # `lr = 0.1 * world_size` makes no other name of it.
                if not any(isinstance(part, ast.BinOp) for part in ast.walk(node.value)):
                    found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        return found

    def is_world_size(self, node: ast.AST) -> bool:
        """Whether the number of ranks is in the expression."""
        return any(_WORLD.search(word) or word in self.world_names for word in words(node))


def read_program(script: Path) -> Program:
    """The script and the modules it imports from its own folder.

    Raises:
        UsageError: it cannot be read or is not Python.
    """
    modules = [_read(script)]
    seen = {script.resolve()}
    for module in modules:  # grows
        for name in sorted(module.imported):
            base = script.parent.joinpath(*name.split(".")) if name else None
            for path in (base.with_suffix(".py"), base / "__init__.py") if base else ():
                if path.is_file() and path.resolve() not in seen and len(modules) < _MAX_MODULES:
                    seen.add(path.resolve())
                    modules.append(_read(path))
    return Program(tuple(modules))


def last_name(node: ast.AST) -> str:
    """ "c" of `a.b.c`; "" of what has no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def root_name(node: ast.AST) -> str:
    """ "a" of `a.b[0].c()`."""
    while not isinstance(node, ast.Name):
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ""
    return node.id


def names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def words(node: ast.AST, is_deep: bool = True) -> Iterator[str]:
    """Names, attributes, keywords and strings in it."""
    for part in ast.walk(node) if is_deep else (node,):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, (ast.keyword, ast.arg)) and part.arg:
            yield part.arg
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) < 40:
            yield part.value


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def is_constant(node: ast.AST | None, value: object) -> bool:
    """Whether it is this constant: False is not 0."""
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value


def assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of every plain assignment to a name."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def _read(path: Path) -> Module:
    try:
        return Module(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--script {path} cannot be read: {error}; give a Python file") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply for Python's parser
        where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else str(path)
        raise UsageError(f"{where} is not Python: {getattr(error, 'msg', error)}; mend it, or name another file with --script") from error
