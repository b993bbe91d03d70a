"""Recorded observations and actions as arrays of Gymnasium's spaces, and such arrays as a run records them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, registry

from hpc_rl.envs.guard import flattened, numbers_of, parts_of
from hpc_rl.envs.gym import axes_of, scaling_of, spec_of
from hpc_rl.types import Actions, Array, Spec


def observation_space(spec: Spec) -> spaces.Box:
    """Of single frames, without their stack; bytes have bounds, other numbers none."""
    low, high = (0, 255) if spec.dtype == "uint8" else (-np.inf, np.inf)
    return spaces.Box(low, high, spec.frame, np.dtype(spec.dtype).type)


def action_space(actions: Actions) -> Any:
    """What the environment takes; categories are counted from 0."""
    if actions.kind == "discrete":
        return spaces.Discrete(actions.sizes[0])
    if actions.kind == "multidiscrete":
        return spaces.MultiDiscrete(list(actions.sizes))
    low, high = (np.array(bound, np.float32) for bound in (actions.low, actions.high))
    return spaces.Box(low, high, actions.shape, np.float32)


def taken(chosen: Array, actions: Actions) -> Array:
    """[T, *A]: what the environment got where the policy chose [T, *A]: −1..1 of a box is scaled to its bounds."""
    space = action_space(actions)
    if (scaling := scaling_of(space, actions)) is None:
        return chosen
    middle, half, low, high = scaling
    scaled: Array = np.clip(middle + half * np.clip(chosen, low, high), space.low, space.high)
    return scaled


def chosen(native: Array, space: Any, actions: Actions) -> Array:
    """[T, *A] as a policy would have chosen what an environment with this action space took, [T, …]: `taken` undone."""
    rows = np.asarray(native).reshape(len(native), *actions.shape)
    if (scaling := scaling_of(space, actions)) is None:
        start = np.reshape(getattr(space, "start", 0), -1)  # MultiBinary has no start
        counted: Array = (rows - (start if rows.ndim > 1 else start[0])).astype(actions.dtype)
        return counted
    middle, half = (x.reshape(actions.shape) for x in scaling[:2])
    unscaled: Array = ((rows - middle) / half).astype(actions.dtype)
    return unscaled


def flat(x: Any, space: Any) -> Array:
    """[T, flatdim]: rows of any space of fixed size, as `gymnasium.spaces.flatten` gives each of them."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([flat(x[name], part) for name, part in space.spaces.items()], 1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([flat(part, inner) for part, inner in zip(x, space.spaces, strict=True)], 1)
    rows = np.asarray(x)
    if isinstance(space, spaces.Discrete):
        one_hot: Array = np.eye(int(space.n), dtype=np.int64)[rows.reshape(len(rows)) - space.start]
        return one_hot
    if isinstance(space, spaces.MultiDiscrete):
        categories = (rows - space.start).reshape(len(rows), -1).T
        sizes = space.nvec.ravel().tolist()
        return np.concatenate([np.eye(n, dtype=np.int64)[k] for n, k in zip(sizes, categories, strict=True)], 1)
    return rows.reshape(len(rows), -1)


@dataclass(frozen=True)
class Observations:
    """How observations of a space become those of a run, as `make` would show them."""

    spec: Spec
    space: Any
    scale: Array | None

    @staticmethod
    def of(id: str, observation: Any, action: Any) -> Observations:
        """Raises BadEnvironment where a run cannot hold such observations or actions."""
        observation = numbers_of(observation)
        if isinstance(observation, spaces.Box):
            return Observations(spec_of(id, observation, action, {}), observation, None)
        box, scale = flattened(id, observation)
        return Observations(spec_of(id, box, action, parts_of(id, observation)), observation, scale)

    def rows(self, x: Any) -> Array:
        """[T, *frame] of the recorded dtype from T observations of the space."""
        if isinstance(self.space, spaces.Box):
            moved = np.asarray(x).transpose(0, *(axis + 1 for axis in axes_of(self.space)))
            shown: Array = moved.reshape(len(moved), *self.spec.frame)
        else:
            shown = flat(x, self.space) if self.scale is None else flat(x, self.space) * self.scale
        rows: Array = shown.astype(self.spec.dtype, copy=False)
        return rows


def registered(spec: Spec, arguments: Mapping[str, Any]) -> EnvSpec | None:
    """The entry of Gymnasium's registry that makes this environment, where its observations are those of ``spec``."""
    if spec.parts or spec.stack > 1 or len(spec.frame) > 1 or spec.id not in registry:
        return None
    entry = copy.deepcopy(registry[spec.id])
    entry.kwargs.update({name: value for name, value in arguments.items() if name != "max_episode_steps"})
    entry.max_episode_steps = arguments.get("max_episode_steps", entry.max_episode_steps)
    return entry
