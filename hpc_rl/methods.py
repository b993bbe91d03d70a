"""Methods and topologies by name: their folders are the registries. Only this file turns a name into a module.

A job is read on login nodes, where importing a method (and torch) takes too long. So a method's Config, with its
``experience()``, and its constants are read from its source: `config_class` executes the class ``Config`` alone, beside
those imports of the file that it uses and that come from one of `FOR_CONFIG`. The file's functions are not there.
"""

from __future__ import annotations

import ast
import functools
import importlib
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.checking import check_defaults, shown
from hpc_rl.config import BadJob
from hpc_rl.experience import Experience
from hpc_rl.sources import Start

if TYPE_CHECKING:  # login-node commands read jobs and must start without torch
    from _typeshed import DataclassInstance

    from hpc_rl.algorithms.base import Algorithm

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "algorithms"
FOR_CONFIG = ("dataclasses", "typing", "math", "hpc_rl.config", "hpc_rl.types", "hpc_rl.experience", "hpc_rl.sources")


class BadMethod(BadJob):
    """A file of algorithms/ is not a method; the message names the file, the line and what is wrong."""


def algorithms() -> list[str]:
    """Names of all methods."""
    return _modules(FOLDER)


def topologies() -> list[str]:
    """Names of all topologies."""
    return _modules(PACKAGE / "topologies")


def _modules(folder: Path) -> list[str]:
    names = (path.stem for path in folder.glob("*.py"))
    return sorted(name for name in names if name.isidentifier() and name not in ("__init__", "base"))


def algorithm(name: str) -> Algorithm[Any, Any]:
    """The method's value, importing its file (and torch).

    Raises:
        BadMethod: the file cannot be imported, or has no ALGORITHM.
    """
    try:
        module = importlib.import_module(f"hpc_rl.algorithms.{name}")
    except Exception as error:  # a method's file may raise anything
        raise BadMethod(_sentence(FOLDER / f"{name}.py", error, "the file cannot be imported")) from error
    if not hasattr(module, "ALGORITHM"):
        raise BadMethod(f"algorithms/{name}.py defines no ALGORITHM; its last line is ALGORITHM = Algorithm(…)")
    value: Algorithm[Any, Any] = module.ALGORITHM
    return value


def topology(name: str) -> types.ModuleType:
    """The topology's module: ``plan(job) -> Plan`` and ``run(...)``."""
    return importlib.import_module(f"hpc_rl.topologies.{name}")


def allowed_topologies(name: str) -> tuple[str, ...]:
    """TOPOLOGIES of a method, without importing its file. Raises BadMethod where that is no tuple of their names."""
    value, all_topologies = _assigned(name, "TOPOLOGIES"), topologies()
    try:
        names = ast.literal_eval(value)
    except (ValueError, TypeError):
        raise BadMethod(f"algorithms/{name}.py, line {value.lineno}: TOPOLOGIES must be a literal tuple") from None
    if not isinstance(names, tuple) or not names or any(x not in all_topologies for x in names):
        raise BadMethod(
            f"algorithms/{name}.py: TOPOLOGIES = {shown(names)} must be a tuple of topologies; "
            f"choose from {', '.join(all_topologies)}"
        )
    return names


def _assigned(name: str, constant: str) -> ast.expr:
    """The expression that a method's file assigns to a name, at the top level."""
    for node in _parsed(FOLDER / f"{name}.py").body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None and any(isinstance(target, ast.Name) and target.id == constant for target in targets):
            return value
    raise BadMethod(f"algorithms/{name}.py defines no {constant}")


def experience(name: str, values: Mapping[str, object]) -> Experience:
    """What a method learns from where its Config has these values, without importing its file.

    Raises:
        BadMethod: its ``experience()`` raises, or returns something else.
    """
    return _experience(FOLDER / f"{name}.py", config_class(name), values)


def _experience(path: Path, kind: type[DataclassInstance], values: Mapping[str, object]) -> Experience:
    method = getattr(kind, "experience", None)
    if not callable(method):
        raise BadMethod(f"algorithms/{path.name}: Config has no method experience(self) -> Experience; add it")
    try:
        answer = method(kind(**values))
    except BadJob:  # fields that do not go together, in a sentence of the method's own
        raise
    except Exception as error:  # what stands in the method may raise anything
        raise BadMethod(_sentence(path, error, "experience() of Config fails") + _rule(error)) from None
    if not isinstance(answer, Experience) or not answer.items:
        raise BadMethod(
            f"algorithms/{path.name}: experience() of Config returns {shown(answer)}; return an Experience with items"
        )
    return answer


def starts(name: str, values: Mapping[str, object]) -> tuple[Start, ...]:
    """What parts of a method's networks begin as where its Config has these values, without importing its file.

    Its ``starts()`` names for each part the field with the directory of a run, which may be empty.
    """
    config = config_class(name)(**values)
    parts: dict[str, str] = getattr(config, "starts", dict)()
    named = [(part, f"{name}.{key}", getattr(config, key)) for part, key in parts.items()]
    return tuple(Start(*start) for start in named if start[-1])


def config_class(name: str) -> type[DataclassInstance]:
    """The method's Config with its methods, without importing its file.

    Raises:
        BadMethod: there is none, it uses what is not there, or its own defaults could not be given in a job file.
    """
    return _config_class(FOLDER / f"{name}.py")


@functools.cache
def _config_class(path: Path) -> type[DataclassInstance]:
    tree, file = _parsed(path), f"algorithms/{path.name}"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    if not classes:
        raise BadMethod(f"{file} defines no Config; every method has one, a frozen dataclass")
    module = types.ModuleType(f"hpc_rl.algorithms.{path.stem}:Config")
    source = ast.Module([*_imports(tree, _names(classes[0])), classes[0]], [])
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        kind: type[DataclassInstance] = module.Config
        check_defaults(kind, path.stem)
    except BadJob as error:
        raise BadMethod(f"{file}, Config: {error}") from None
    except Exception as error:  # what stands in the class may raise anything
        raise BadMethod(_sentence(path, error, "Config cannot be read") + _rule(error)) from None
    _experience(path, kind, {})
    return kind


def _rule(error: Exception) -> str:
    """The remedy where a name is not there."""
    return f"; it may use builtins and names from {', '.join(FOR_CONFIG)}" if isinstance(error, NameError) else ""


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _imports(tree: ast.Module, names: set[str]) -> list[ast.stmt]:
    """The imports at the file's top level that bind one of ``names`` and come from `FOR_CONFIG`."""
    statements: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in FOR_CONFIG:
            aliases = [alias for alias in node.names if (alias.asname or alias.name) in names]
            statements += [ast.copy_location(ast.ImportFrom(node.module, aliases, node.level), node)] if aliases else []
        elif isinstance(node, ast.Import):
            modules = [alias for alias in node.names if alias.name in FOR_CONFIG and "." not in alias.name]
            statements += [ast.copy_location(ast.Import(modules), node)] if modules else []
    return statements


@functools.cache
def _parsed(path: Path) -> ast.Module:
    """The syntax tree of a method's file."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise BadMethod(_sentence(path, error, "the file cannot be read")) from None


def _sentence(path: Path, error: Exception, problem: str) -> str:
    """File, line where ``error`` rose in it, the problem, and the error itself on one line."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        frames = [error.lineno or 0]
    line = frames[-1] if frames else 0
    place = f"algorithms/{path.name}" + (f", line {line}" if line else "")
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{place}: {problem} ({type(error).__name__}: {text})"
