"""From the ``id`` of a job to b environment columns. What an id may look like:

``ALE/Pong-v5``          Atari by ale_py's C++ vector environment (atari.py)
``toy/counter``          environments that come with this package (built_in.py)
``warp/humanoid``        Gymnasium's robots in batches of worlds on a device (warp/robots.py)
``my_pkg.my_module:make``  a user's function that returns one gymnasium.Env (gym.py), or Rules (rules.py)
``my_pkg:Task-v0``       an id of Gymnasium's registry, once the module before the colon is imported (gym.py)
``mixture``              several of these side by side, named by ``arguments.ids`` (mixture.py)
anything else            an id of Gymnasium's registry (gym.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs import atari, gym, mixture
from hpc_rl.envs.base import BadEnvironment, Environment
from hpc_rl.envs.built_in import BUILT_IN, built_in
from hpc_rl.envs.column_shares import Processes
from hpc_rl.envs.entries import check, nearest, users
from hpc_rl.envs.goal_env import goal_reward_of
from hpc_rl.envs.of_rules import environment_of, toy_of
from hpc_rl.envs.processes import SubprocessEnvironment
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
        of_rules = environment_of(id, arguments, columns)
        if state and (of_rules is not None or id.startswith("ALE/")):
            raise BadEnvironment(f"environment.state = {list(state)} has no effect on {id}; leave it out")
        if of_rules is not None:
            return of_rules
        if id.startswith("ALE/"):
            return atari.make(id, _options(id, arguments), columns, threads)
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
        if (of_rules := toy_of(id, arguments, np)) is not None:
            return of_rules[0].rules.spec
        return gym.describe(id, factory(id, arguments))


def rules(id: str, arguments: dict[str, Any]) -> Rules | None:
    """The environment's Rules on torch, for methods that look ahead; None where it is not made of Rules.

    Those of a match are the game's, of two players.

    Raises:
        BadEnvironment: as `make`.
    """
    if id == mixture.ID or not (built_in(id) or ":" in id):
        return None
    import torch

    with _told(id, arguments):
        of_rules = toy_of(id, arguments, torch)
        return None if of_rules is None else of_rules[0].rules


def goal_reward(id: str, arguments: dict[str, Any]) -> GoalReward:
    """What other goals would have paid in this environment, as a function of NumPy arrays.

    Raises:
        BadEnvironment: as `make`, and where it has none.
    """
    with _told(id, arguments):
        if (of_rules := toy_of(id, arguments, np)) is not None:
            reward = of_rules[0].rules.goal_reward
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
        raise BadEnvironment(f"{id} is not an ALE game; {nearest(id, games)} (written ALE/<Game>-v5)")
    check(id, arguments, atari.Options)
    return atari.options_of(id, arguments)


def factory(id: str, arguments: dict[str, Any]) -> Callable[[], gymnasium.Env[Any, Any]]:
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    name = id
    if ":" in id:
        function, name = users(id)
        if function is not None:
            check(id, arguments, function)
            return lambda: function(**arguments)
    elif (remedy := atari.old_name(id)) is not None:  # else accepted once something has imported ale_py
        raise BadEnvironment(remedy)
    if name not in gymnasium.registry:
        names = [*gymnasium.registry, *BUILT_IN]
        raise BadEnvironment(
            f"{id} is no id of Gymnasium's registry (an environment of your own is my_package.my_module:function); "
            f"{nearest(id, names)}"
        )
    entry = gymnasium.spec(name).entry_point
    if entry is not None:
        check(id, arguments, entry if callable(entry) else load_env_creator(entry), ("max_episode_steps",))
    # Gymnasium's checker looks at every step and changes nothing
    return lambda: gymnasium.make(name, **{"disable_env_checker": True, **arguments})
