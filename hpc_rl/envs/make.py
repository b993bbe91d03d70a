"""From the ``id`` of a job to b environment columns. What an id may look like:

``ALE/Pong-v5``          Atari by ale_py's C++ vector environment (atari.py)
``toy/counter``          environments that come with this package (built_in.py)
``my_pkg.my_module:make``  a user's function that returns one gymnasium.Env (gym.py)
``my_pkg:Task-v0``       an id of Gymnasium's registry, once the module before the colon is imported (gym.py)
``mixture``              several of these side by side, named by ``arguments.ids`` (mixture.py)
anything else            an id of Gymnasium's registry (gym.py)

Modules are imported from where Python is told to look, and last from the working directory: the folder in which the
command was given, wherever the job file lies.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs import atari, gym, mixture
from hpc_rl.envs.base import BadEnvironment, Environment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.column_shares import Processes
from hpc_rl.envs.goal_env import goal_reward_of
from hpc_rl.envs.processes import SubprocessEnvironment
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.envs.targets import check_module, check_target
from hpc_rl.envs.toy import Toy
from hpc_rl.types import GoalReward, Rules, Spec

if TYPE_CHECKING:
    import gymnasium


IN_PROCESS = Processes()


def make(
    id: str,
    arguments: dict[str, Any],
    columns: int,
    threads: int = 1,
    processes: Processes = IN_PROCESS,
    state: tuple[str, ...] = (),
) -> Environment:
    """b = ``columns`` environments behind one call; ``threads`` is used by Atari only, ``processes`` by all others.

    ``state`` names the two methods that get and set the state of an environment of gym.py, see own_state.py.

    Raises:
        BadEnvironment: unknown id, module, attribute or argument, an environment that refuses to be made, or processes
            that do not fit it.
    """
    if columns < 1:
        raise BadEnvironment(f"{id} was asked for {columns} columns; at least one is needed")
    with _told(id, arguments):
        if id == mixture.ID:
            own = mixture.without_ids(arguments)
            ids = mixture.ids_of(id, arguments)
            return mixture.Mixture(ids, columns, lambda part, count: make(part, own, count, threads, state=state))
        if processes.count:
            return SubprocessEnvironment(partial(make, state=state), id, arguments, columns, processes)
        if state and id.startswith(("ALE/", "toy/")):
            raise BadEnvironment(f"environment.state = {list(state)} has no effect on {id}; leave it out")
        if id.startswith("ALE/"):
            return atari.make(id, _options(id, arguments), columns, threads)
        if id.startswith("toy/"):
            toy = _toy(id, arguments, np)
            return RulesEnvironment(toy.rules, columns, toy.follow, toy.effect)
        return gym.make(id, factory(id, arguments), columns, state)


def describe(id: str, arguments: dict[str, Any]) -> Spec:
    """The Spec that `make` would give, without keeping an environment.

    Raises:
        BadEnvironment: as `make`.
    """
    with _told(id, arguments):
        if id == mixture.ID:
            own = mixture.without_ids(arguments)
            return mixture.described([describe(part, own) for part in mixture.ids_of(id, arguments)])
        if id.startswith("ALE/"):
            return atari.describe(id, _options(id, arguments))
        if id.startswith("toy/"):
            return _toy(id, arguments, np).rules.spec
        return gym.describe(id, factory(id, arguments))


def rules(id: str, arguments: dict[str, Any]) -> Rules | None:
    """The environment's Rules on torch, for methods that look ahead; None where it is not made of Rules.

    Raises:
        BadEnvironment: as `make`.
    """
    if not id.startswith("toy/"):
        return None
    import torch

    with _told(id, arguments):
        return _toy(id, arguments, torch).rules


def goal_reward(id: str, arguments: dict[str, Any]) -> GoalReward:
    """What other goals would have paid in this environment, as a function of NumPy arrays.

    Raises:
        BadEnvironment: as `make`, and where it has none.
    """
    with _told(id, arguments):
        if id.startswith("toy/"):
            reward = _toy(id, arguments, np).rules.goal_reward
            if reward is None:
                raise BadEnvironment(f"{id} has no goals, which relabelling needs; its Rules have no goal_reward")
            return reward
        if id == mixture.ID or id.startswith("ALE/"):
            raise BadEnvironment(f"{id} has no goals, which relabelling needs; name one environment with goals")
        return goal_reward_of(id, factory(id, arguments)())


def describe_sets(id: str, arguments: dict[str, Any], sets: Sequence[Mapping[str, Any]], spec: Spec) -> None:
    """Check the sets of arguments that a policy for ``spec`` is judged with.

    Raises:
        BadEnvironment: a set cannot be made, or its observations or actions are others.
    """
    for k, changes in enumerate(sets):
        other = describe(id, {**arguments, **changes})
        for name in ("observation", "dtype", "stack", "actions"):
            if getattr(other, name) != getattr(spec, name):
                raise BadEnvironment(
                    f"evaluate.arguments[{k}] = {dict(changes)} changes the {name} of {id} from {getattr(spec, name)} "
                    f"to {getattr(other, name)}, which the policy was not made for; leave out what changes it"
                )


@contextmanager
def _told(id: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Any exception in a constructor becomes a one-sentence BadEnvironment that names the id."""
    try:
        yield
    except BadEnvironment:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadEnvironment(f"{id} cannot be made with {arguments}: {told}") from error


def _options(id: str, arguments: dict[str, Any]) -> atari.Options:
    if id not in (games := atari.games()):
        raise BadEnvironment(f"{id} is not an ALE game; {_nearest(id, games)} (written ALE/<Game>-v5)")
    _check(id, arguments, atari.Options)
    return atari.options_of(id, arguments)


def _toy(id: str, arguments: dict[str, Any], xp: ModuleType) -> Toy:
    if id not in TOYS:
        raise BadEnvironment(f"{id} is not a built-in toy environment; {_nearest(id, TOYS)}")
    _check(id, arguments, TOYS[id])
    return TOYS[id](xp, **arguments)


def factory(id: str, arguments: dict[str, Any]) -> Callable[[], gymnasium.Env[Any, Any]]:
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    name = id
    if ":" in id:
        function, name = _users(id)
        if function is not None:
            _check(id, arguments, function)
            return lambda: function(**arguments)
    elif (remedy := atari.old_name(id)) is not None:  # else accepted once something has imported ale_py
        raise BadEnvironment(remedy)
    if name not in gymnasium.registry:
        names = [*gymnasium.registry, *TOYS]
        raise BadEnvironment(
            f"{id} is no id of Gymnasium's registry (an environment of your own is my_package.my_module:function); "
            f"{_nearest(id, names)}"
        )
    entry = gymnasium.spec(name).entry_point
    if entry is not None:
        _check(id, arguments, entry if callable(entry) else load_env_creator(entry), ("max_episode_steps",))
    # Gymnasium's checker looks at every step and changes nothing
    return lambda: gymnasium.make(name, **{"disable_env_checker": True, **arguments})


def _users(id: str) -> tuple[Callable[..., Any] | None, str]:
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
        f"{id}: {module_name} has no function {attribute!r} and registers no such id; {_nearest(attribute, names)}"
    )


def _check(id: str, arguments: dict[str, Any], target: Callable[..., Any], also: tuple[str, ...] = ()) -> None:
    """Refuse an argument that ``target`` does not take, and name those it does."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    valid = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    valid = sorted({*valid, *also} - {"self"})
    for name in arguments:
        if name not in valid:
            raise BadEnvironment(f"{id} takes no argument {name!r}; it takes {', '.join(valid) or 'none'}")


def _nearest(name: str, names: Iterable[str]) -> str:
    """A clause with up to three names that look like this one."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, 3, 0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
