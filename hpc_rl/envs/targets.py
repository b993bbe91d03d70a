"""Which code a job may name. A job file comes from anywhere, and ``module:name`` in it imports and calls.

The module must not be Python's own, and the name must be meant to make environments: a class that is a gymnasium.Env, a
function declared to return one (``-> gymnasium.Env``) or Rules, or one whose module works with gymnasium. So
``os:system``, ``shutil:rmtree`` and ``numpy:savetxt`` are refused and never called; `notice` tells what will be
imported before it is.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import types
from importlib.machinery import PathFinder
from typing import Any, get_origin

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.types import Rules


def notice(id: str) -> str | None:
    """One sentence for the user: which module of whom is about to be imported; None where it is Gymnasium's or ours."""
    module, colon, name = id.partition(":")
    top = module.partition(".")[0]
    if not colon or top == "hpc_rl":
        return None
    found = PathFinder.find_spec(top, [*sys.path, os.getcwd()]) if top.isidentifier() else None
    where = (found.origin or next(iter(found.submodule_search_locations or ()), None)) if found else None
    return f"environment.id = {id!r} imports {module!r} ({where or 'not found here'}) and calls {name!r}"


def check_module(id: str, module: str) -> None:
    """Raise BadEnvironment, before the import, where the module belongs to Python itself."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names or top == "__main__":
        raise BadEnvironment(
            f"{id}: {top} belongs to Python and makes no environments; name a function of a package of your own"
        )


def check_target(id: str, target: Any) -> None:
    """Raise BadEnvironment, before the call, where ``target`` is not meant to make an environment."""
    if not makes_rules(target) and not _makes_environments(target):
        raise BadEnvironment(
            f"{id} is neither a gymnasium.Env nor a function that is known to make one, so it is not called;"
            " declare it: def make(…) -> gymnasium.Env"
        )


def makes_rules(target: Any) -> bool:
    """A function that is declared to return Rules of this package: ``def game(xp, …) -> Rules``."""
    if not isinstance(target, types.FunctionType):
        return False
    returns = target.__annotations__.get("return")
    if isinstance(returns, str):
        returns = returns.strip("'\"").rpartition(".")[2]
        returns = target.__globals__.get(returns, returns)
    return returns is Rules or returns == "Rules"


def _makes_environments(target: Any) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    if isinstance(target, type):
        return _is_env(target)
    if not isinstance(target, types.FunctionType):
        return False
    returns = target.__annotations__.get("return", Ellipsis)
    if isinstance(returns, str):  # what it names may be imported for type checkers alone
        name = re.sub(r"\[.*", "", returns).rpartition(".")[2].strip()
        return name == "Env" or _is_env(target.__globals__.get(name))
    if returns is not Ellipsis:
        return _is_env(get_origin(returns) or returns)
    if _of_gymnasium(target.__module__):  # its helpers write videos and play games
        return False
    imported = any(_of_gymnasium(name) for name in target.__code__.co_names)
    return imported or any(_is_env(x) or _of_gymnasium(_home(x)) for x in target.__globals__.values())


def _is_env(kind: Any) -> bool:
    import gymnasium

    return isinstance(kind, type) and issubclass(kind, gymnasium.Env)


def _home(value: Any) -> Any:
    return value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)


def _of_gymnasium(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "gymnasium"
