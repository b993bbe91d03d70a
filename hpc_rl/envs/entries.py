"""What an id names beside the built-in environments: functions of a user's modules, which are imported for it.

Modules are imported from where Python is told to look, and last from the working directory: the folder in which the
command was given, wherever the job file lies.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.targets import check_module, check_target


def users(id: str) -> tuple[Callable[..., Any] | None, str]:
    """Import the module of ``module:name``; its function of that name, else None and a name of Gymnasium's registry."""
    module_name, _, attribute = id.partition(":")
    check_module(id, module_name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file there hides an installed package
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there and lacks something itself
        raise BadEnvironment(
            f"{id}: there is no module {error.name}; start in the folder that holds it or install it"
        ) from error
    function = getattr(module, attribute, None)
    if callable(function):
        check_target(id, function)
        return function, attribute
    import gymnasium

    if attribute in gymnasium.registry:
        return None, attribute
    names = [name for name, value in vars(module).items() if callable(value)]
    raise BadEnvironment(
        f"{id}: {module_name} has no function {attribute!r} and registers no such id; {nearest(attribute, names)}"
    )


def check(
    id: str, arguments: dict[str, Any], target: Callable[..., Any], also: tuple[str, ...] = (), given: int = 0
) -> None:
    """Refuse an argument that ``target`` does not take, and name those it does, without the first ``given``."""
    parameters = list(inspect.signature(target).parameters.values())[given:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    valid = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    valid = sorted({*valid, *also} - {"self"})
    for name in arguments:
        if name not in valid:
            raise BadEnvironment(f"{id} takes no argument {name!r}; it takes {', '.join(valid) or 'none'}")


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause with up to three names that look like this one."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, 3, 0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
