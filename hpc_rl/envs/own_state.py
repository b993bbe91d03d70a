"""Environments that offer their state: it is kept in the place of the moves of an open episode, which skips the replay.

Offered it is by two methods, ``get_state()`` and ``set_state(state)`` or those that ``environment.state`` names, of the
environment or of a wrapper, as long as nothing lies above it but wrappers of Gymnasium's that look on or count moves.
The state may be made of arrays, numbers, text, lists (a tuple comes back as one) and dicts. What TimeLimit counted and
the generator that ``reset(seed=…)`` started are kept beside it.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import gymnasium
import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.guard import TRANSPARENT, Guard

USUAL = ("get_state", "set_state")


class _Unkeepable(TypeError):
    """A checkpoint does not hold such a value."""


class OwnState:
    """The state of one guarded environment by its own two methods."""

    def __init__(self, env: Any, owner: Any, names: tuple[str, ...]) -> None:
        self._env, self._get, self._set = env, getattr(owner, names[0]), getattr(owner, names[1])
        self._limits = [layer for layer in _layers(env) if isinstance(layer, gymnasium.wrappers.TimeLimit)]

    def take(self) -> dict[str, Any] | None:
        """A copy; None where a checkpoint cannot hold it."""
        try:
            state = _plain(self._get())
        except _Unkeepable:
            return None
        generator = getattr(self._env.unwrapped, "_np_random", None)  # np_random would make one
        return {
            "state": state,
            "generator": None if generator is None else _plain(generator.bit_generator.state),
            "elapsed": [limit._elapsed_steps for limit in self._limits],
        }

    def put(self, taken: dict[str, Any]) -> None:
        """Go on where `take` was called; the environment has been reset from the seed of that episode.

        Raises:
            ValueError: the environment gives another state than the one that it took.
        """
        wanted = _plain(taken["state"])
        self._set(_plain(wanted))
        if not _same(_plain(self._get()), wanted):
            raise ValueError("it gives another state than it was given")
        generator = getattr(self._env.unwrapped, "_np_random", None)
        if generator is not None and taken["generator"] is not None:
            generator.bit_generator.state = _plain(taken["generator"])
        for limit, elapsed in zip(self._limits, taken["elapsed"], strict=True):
            limit._elapsed_steps = elapsed


def own_states(id: str, envs: list[Any], names: tuple[str, ...]) -> list[OwnState]:
    """One for each of the guarded environments of an id; none where they offer no state.

    Raises:
        BadEnvironment: the two ``names`` are not there, or something above them may have a state of its own.
    """
    owners = [_owner(env, names or USUAL) for env in envs]
    if None not in owners:
        return [OwnState(env, owner, names or USUAL) for env, owner in zip(envs, owners, strict=True)]
    if not names:
        return []
    raise BadEnvironment(
        f"environment.state = {list(names)}, but {id} has no two methods of these names, the second of one argument, "
        "below which all lies that changes from move to move; correct the names or leave state out"
    )


def _owner(env: Any, names: tuple[str, ...]) -> Any:
    """The outermost layer that has both methods; None where there is none, or not only onlookers lie above it."""
    for layer in _layers(env):
        if not isinstance(layer, Guard):
            if len(names) == 2 and _takes(layer, names[0], 0) and _takes(layer, names[1], 1):
                return layer
            if type(layer) not in TRANSPARENT:
                return None
    return None


def _takes(layer: Any, name: str, count: int) -> bool:
    """Has a method that can be called with ``count`` values."""
    if not hasattr(type(layer), name) or not callable(getattr(layer, name, None)):
        return False
    try:
        inspect.signature(getattr(layer, name)).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _layers(env: Any) -> list[Any]:
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _plain(value: Any) -> Any:
    """A copy as a checkpoint holds it. Raises _Unkeepable."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and all(isinstance(name, str) and name not in ("", ".", "$array") for name in value):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    array: Any = np.asarray(value).copy()  # a tensor, too: what a checkpoint's arrays come back as
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise _Unkeepable(f"a {type(value).__name__} is none of arrays, numbers, text, lists and dicts")
    return array


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[x], other[x]) for x in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and one.tobytes() == other.tobytes()
    both = isinstance(one, float) and isinstance(other, float)
    return bool(one == other) or (both and math.isnan(one) and math.isnan(other))
