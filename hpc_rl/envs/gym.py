"""Any gymnasium.Env, one copy per column, stepped one after the other by SyncVectorEnv.

Images of bytes, H×W×C, are moved to C×H×W, whatever lies before (a stack). An entry of a Box action that has two finite
bounds is scaled to them from −1..1; one that has not is handed on, cut at the bound that it has.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs.base import SUCCESS, BadEnvironment, TimeSteps, close
from hpc_rl.envs.generators import seed_shared
from hpc_rl.types import Actions, Array, ObservationPart, Spec

if TYPE_CHECKING:
    import gymnasium

    AnyEnv = gymnasium.Env[Any, Any]


def describe(id: str, factory: Callable[[], AnyEnv]) -> Spec:
    """The Spec of one environment, which is made, read and closed.

    Raises:
        BadEnvironment: its spaces or its way of resetting are not supported.
    """
    from hpc_rl.envs.guard import guarded

    env = guarded(id, factory())
    try:
        return spec_of(id, env.observation_space, env.action_space, _parts(env))
    finally:
        close(env, id)


def make(id: str, factory: Callable[[], AnyEnv], columns: int) -> Gym:
    """b = ``columns`` environments with next-step autoreset.

    Raises:
        BadEnvironment: as `describe`.
    """
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    from hpc_rl.envs.guard import guarded

    copies = [lambda: guarded(id, factory())] * columns
    vector = SyncVectorEnv(copies, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)  # `_shaped` makes the copy
    if len({builtins.id(env.unwrapped) for env in vector.envs}) < columns:
        raise BadEnvironment(f"{id} returned one environment twice; it must make a new one at every call")
    return Gym(id, vector)


def _parts(env: Any) -> Mapping[str, ObservationPart]:
    """Those of a guarded environment: where the parts of a Dict or Tuple lie in its vector."""
    parts: Mapping[str, ObservationPart] = env.get_wrapper_attr("observation_parts")
    return parts


def spec_of(id: str, observation: Any, action: Any, parts: Mapping[str, ObservationPart]) -> Spec:
    """Spec from the two spaces of one guarded environment; a scalar Box is seen as [1], integers as float32."""
    dtype = "uint8" if observation.dtype == np.uint8 else "float32"
    frame = tuple(observation.shape[axis] for axis in axes_of(observation)) or (1,)
    return Spec(id=id, frame=frame, dtype=dtype, actions=_actions(id, action), parts=parts)


def axes_of(space: Any) -> tuple[int, ...]:
    """The order that turns images [.., H, W, C] into [.., C, H, W]: bytes whose last axis is the shortest of three."""
    last, shape = len(space.shape) - 1, space.shape
    if space.dtype == np.uint8 and last >= 2 and shape[last] < min(shape[last - 2 : last]):
        return (*range(last - 2), last, last - 2, last - 1)
    return tuple(range(last + 1))


def _actions(id: str, space: Any) -> Actions:
    from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

    if isinstance(space, Discrete):
        return Actions("discrete", (int(space.n),))
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return Actions("multidiscrete", tuple(int(n) for n in space.nvec))
    if isinstance(space, MultiBinary):
        return Actions("multidiscrete", (2,) * prod(space.shape))
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(float(x) for x in bound.ravel()) for bound in (space.low, space.high))
        return Actions("box", (prod(space.shape),), low, high)
    kinds = "Discrete, flat MultiDiscrete, MultiBinary and float Box are"
    raise BadEnvironment(f"{id}: actions {space} are not supported; {kinds}")


def _scaling(space: Any, actions: Actions) -> tuple[Array, Array, Array, Array] | None:
    """(middle, half, low, high) of each entry: the environment gets middle + half · a for a clipped to low..high."""
    if actions.kind != "box":
        return None
    both = np.reshape([span is not None for span in actions.scaled_to], space.shape)
    low, high = np.where(both, space.low, 0), np.where(both, space.high, 0)
    middle, half = low + (high - low) / 2, np.where(both, (high - low) / 2, 1)
    ends = (np.where(both, -1, space.low), np.where(both, 1, space.high))
    found = tuple(x.astype(space.dtype) for x in (middle, half, *ends))
    return found  # type: ignore[return-value]


class Gym:
    """b Gymnasium environments; see `Environment`."""

    rules_state = None

    def __init__(self, id: str, vector: Any) -> None:
        from gymnasium.vector import AutoresetMode

        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise BadEnvironment(f"{id} resets in mode {mode}; only AutoresetMode.NEXT_STEP keeps the last observation")
        spaces = vector.single_observation_space, vector.single_action_space
        self.spec = spec_of(id, *spaces, _parts(vector.envs[0]))
        self.columns: int = vector.num_envs
        self._axes = (0, *(axis + 1 for axis in axes_of(vector.single_observation_space)))
        self._scaled = _scaling(vector.single_action_space, self.spec.actions)
        self._vector = vector
        self._action: Array | None = None
        self._ended = np.zeros(self.columns, bool)
        self._unknown = np.full(self.columns, np.nan, np.float32)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O]; later episodes go on with each environment's own generator."""
        seed_shared(*(int(seed) for seed in seeds))  # for those that draw from them instead of their own
        observation, _ = self._vector.reset(seed=[int(seed) for seed in seeds])
        self._ended = np.zeros(self.columns, bool)
        return self._shaped(observation)

    def send(self, action: Array) -> None:
        """Take action [b, *A]; the environments move in `recv`."""
        self._action = self._native(np.asarray(action))

    def recv(self) -> TimeSteps:
        """Step every environment."""
        observation, reward, terminated, truncated, info = self._vector.step(self._action)
        first = self._ended
        self._ended = terminated | truncated
        return TimeSteps(
            observation=self._shaped(observation),
            reward=reward.astype(np.float32),
            discount=1 - terminated.astype(np.float32),
            first=first,
            ended=self._ended,
            success=self._success(info) if SUCCESS in info else self._unknown,
        )

    def _success(self, info: dict[str, Any]) -> Array:
        known = self._ended & info[f"_{SUCCESS}"]
        return np.where(known, info[SUCCESS], np.nan).astype(np.float32)

    def _native(self, action: Array) -> Array:
        """What the policy chose, as the environment counts, scales and shapes it."""
        space = self._vector.single_action_space
        if self._scaled is None:
            native = action + getattr(space, "start", 0)  # MultiBinary has no start
            return native.reshape(self.columns, *space.shape).astype(space.dtype, copy=False)
        middle, half, low, high = self._scaled
        scaled = middle + half * np.clip(action.reshape(self.columns, *space.shape).astype(space.dtype), low, high)
        return np.clip(scaled, space.low, space.high)  # type: ignore[no-any-return]  # rounding

    def _shaped(self, observation: Array) -> Array:
        moved = observation.transpose(self._axes)
        return moved.reshape(self.columns, *self.spec.frame).astype(self.spec.dtype)

    def state(self) -> dict[str, Any]:
        raise BadEnvironment(f"{self.spec.id} cannot be cloned: Gymnasium has no call for it")

    def load(self, state: dict[str, Any]) -> Array:
        raise BadEnvironment(f"{self.spec.id} cannot be cloned: Gymnasium has no call for it")

    def close(self) -> None:
        for env in self._vector.envs:  # each by itself: one that raises must not keep the others open
            close(env, self.spec.id)
        self._vector.closed = True
