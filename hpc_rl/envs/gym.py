"""Any gymnasium.Env, one copy per column, stepped one after the other by SyncVectorEnv."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Moves
from hpc_rl.types import Actions, Array, Spec

if TYPE_CHECKING:
    import gymnasium

    AnyEnv = gymnasium.Env[Any, Any]


def describe(id: str, factory: Callable[[], AnyEnv]) -> Spec:
    """The Spec of one environment, which is made, read and closed.

    Raises:
        BadEnvironment: its spaces or its way of resetting are not supported.
    """
    env = adapted(id, factory())
    try:
        return spec_of(id, env.observation_space, env.action_space)
    finally:
        env.close()


def make(id: str, factory: Callable[[], AnyEnv], columns: int) -> Gym:
    """b = ``columns`` environments with next-step autoreset.

    Raises:
        BadEnvironment: as `describe`.
    """
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    copies = [lambda: adapted(id, factory())] * columns
    return Gym(id, SyncVectorEnv(copies, autoreset_mode=AutoresetMode.NEXT_STEP))


def adapted(id: str, env: Any) -> AnyEnv:
    """The environment with a Box observation: all but a Box goes through FlattenObservation (Discrete is one-hot)."""
    import gymnasium
    from gymnasium.spaces import Box, Space

    if not isinstance(env, gymnasium.Env):
        raise BadEnvironment(f"{id} gives a {type(env).__name__}; it must return one gymnasium.Env")
    inner: Any = env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.wrappers.Autoreset):
            raise BadEnvironment(f"{id} resets itself (wrapper Autoreset); leave that wrapper out")
        inner = inner.env
    space: Space[Any] = env.observation_space
    if isinstance(space, Box):
        return env
    if not space.is_np_flattenable:
        raise BadEnvironment(f"{id}: observations {space} have no fixed size; wrap it to give a Box of numbers")
    return gymnasium.wrappers.FlattenObservation(env)


def spec_of(id: str, observation: Any, action: Any) -> Spec:
    """Spec from the two spaces of one adapted environment; a scalar Box is seen as [1], integers as float32."""
    dtype = "uint8" if observation.dtype == np.uint8 else "float32"
    return Spec(id=id, frame=observation.shape or (1,), dtype=dtype, actions=_actions(id, action))


def _actions(id: str, space: Any) -> Actions:
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    if isinstance(space, Discrete):
        return Actions("discrete", (int(space.n),))
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return Actions("multidiscrete", tuple(int(n) for n in space.nvec))
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(float(x) for x in bound.ravel()) for bound in (space.low, space.high))
        return Actions("box", (prod(space.shape),), low, high)
    raise BadEnvironment(f"{id}: actions {space} are not supported; Discrete, flat MultiDiscrete and float Box are")


class Gym:
    """b Gymnasium environments; see `Environment`."""

    def __init__(self, id: str, vector: Any) -> None:
        from gymnasium.vector import AutoresetMode

        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise BadEnvironment(f"{id} resets in mode {mode}; only AutoresetMode.NEXT_STEP keeps the last observation")
        self.spec = spec_of(id, vector.single_observation_space, vector.single_action_space)
        self.columns: int = vector.num_envs
        self._vector = vector
        self._action: Array | None = None
        self._ended = np.zeros(self.columns, bool)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O]; later episodes go on with each environment's own generator."""
        observation, _ = self._vector.reset(seed=[int(seed) for seed in seeds])
        self._ended = np.zeros(self.columns, bool)
        return self._shaped(observation)

    def send(self, action: Array) -> None:
        """Take action [b, *A]; the environments move in `recv`."""
        self._action = self._native(np.asarray(action))

    def recv(self) -> Moves:
        """Step every environment; a box action was clipped to the bounds."""
        observation, reward, terminated, truncated, _ = self._vector.step(self._action)
        first = self._ended
        self._ended = terminated | truncated
        return Moves(
            observation=self._shaped(observation),
            reward=reward.astype(np.float32),
            discount=1 - terminated.astype(np.float32),
            first=first,
            ended=self._ended,
        )

    def _native(self, action: Array) -> Array:
        """What the policy chose, as the environment counts and shapes it."""
        space = self._vector.single_action_space
        if self.spec.actions.kind != "box":
            return action + space.start  # type: ignore[no-any-return]
        shaped = action.reshape(self.columns, *space.shape).astype(space.dtype)
        return np.clip(shaped, space.low, space.high)  # type: ignore[no-any-return]

    def _shaped(self, observation: Array) -> Array:
        return observation.reshape(self.columns, *self.spec.frame).astype(self.spec.dtype)

    def state(self) -> dict[str, Any]:
        raise BadEnvironment(f"{self.spec.id} cannot be cloned: Gymnasium has no call for it")

    def load(self, state: dict[str, Any]) -> Array:
        raise BadEnvironment(f"{self.spec.id} cannot be cloned: Gymnasium has no call for it")

    def close(self) -> None:
        self._vector.close()
