"""Any gymnasium.Env, one copy per column, stepped one after the other; every episode opens with a seed of its own.

Images of bytes, H×W×C, are moved to C×H×W, whatever lies before (a stack). An entry of a Box action that has two finite
bounds is scaled to them from −1..1; one that has not is handed on, cut at the bound that it has.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs import episodes
from hpc_rl.envs.base import SUCCESS, BadEnvironment, Resumed, TimeSteps, close
from hpc_rl.envs.episodes import EpisodeLog
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


def make(id: str, factory: Callable[[], AnyEnv], columns: int, state: tuple[str, ...] = ()) -> Gym:
    """b = ``columns`` environments with next-step autoreset; ``state`` names the methods that get and set its state.

    Raises:
        BadEnvironment: as `describe`, and as `own_states`.
    """
    from hpc_rl.envs.guard import guarded

    envs = [guarded(id, factory()) for _ in range(columns)]
    if len({builtins.id(env.unwrapped) for env in envs}) < columns:
        raise BadEnvironment(f"{id} returned one environment twice; it must make a new one at every call")
    return Gym(id, envs, state)


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


def scaling_of(space: Any, actions: Actions) -> tuple[Array, Array, Array, Array] | None:
    """(middle, half, low, high) of each entry: the environment gets middle + half · a for a clipped to low..high."""
    if actions.kind != "box":
        return None
    both = np.reshape([span is not None for span in actions.scaled_to], space.shape)
    low, high = np.where(both, space.low, 0), np.where(both, space.high, 0)
    middle, half = low + (high - low) / 2, np.where(both, (high - low) / 2, 1)
    ends = (np.where(both, -1, space.low), np.where(both, 1, space.high))
    found = tuple(x.astype(space.dtype) for x in (middle, half, *ends))
    return found  # type: ignore[return-value]


def _cut(x: Array, low: Array, high: Array) -> Array:
    """What np.clip gives, which takes ten times as long for a few numbers."""
    return np.minimum(np.maximum(x, low), high)


class Gym:
    """b guarded Gymnasium environments; see `Environment`.

    ``state`` keeps of each column the seed and the moves of its open episode, or the state that the environment offers.
    ``load`` plays those moves again, and opens a new episode where they lead to other rewards or another observation.
    """

    rules_state = None

    def __init__(self, id: str, envs: list[Any], state: tuple[str, ...] = ()) -> None:
        from hpc_rl.envs.own_state import own_states

        space = envs[0].observation_space
        self._space = envs[0].action_space
        self.spec = spec_of(id, space, self._space, _parts(envs[0]))
        self.columns = len(envs)
        self._axes = (0, *(axis + 1 for axis in axes_of(space)))
        self._scaled = scaling_of(self._space, self.spec.actions)
        self._envs, self._states = envs, own_states(id, envs, state)
        self._log = EpisodeLog(self.columns, self.spec.actions)
        self._native_action = np.zeros(0)
        self._rows = np.zeros((self.columns, *space.shape), space.dtype)
        self._shown = self._shaped()
        self._ended = np.zeros(self.columns, bool)
        self._rewards = np.zeros(self.columns)  # of the open episodes
        self._unknown = np.full(self.columns, np.nan, np.float32)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O] from the seeds [b], which also key those of all later episodes."""
        seed_shared(*(int(seed) for seed in seeds))  # for those that draw from them instead of their own
        self._log.start(seeds)
        self._ended, self._rewards = np.zeros(self.columns, bool), np.zeros(self.columns)
        for column, env in enumerate(self._envs):
            self._rows[column], _ = env.reset(seed=self._log.seed(column))
        if self._states and any(state.take() is None for state in self._states):
            self._states = []  # a checkpoint cannot hold them
        self._shown = self._shaped()
        return self._shown

    def send(self, action: Array) -> None:
        """Take action [b, *A]; the environments move in `recv`."""
        action = np.asarray(action)
        self._native_action = self._native(action)
        if not self._states:
            self._log.add(action)

    def recv(self) -> TimeSteps:
        """Step every environment; open the next episode of those whose last move ended one."""
        first, success = self._ended, self._unknown.copy()
        rewards = [0.0] * self.columns  # lists, because an entry of an array takes three times as long
        terminated, truncated = [False] * self.columns, [False] * self.columns
        for k, (env, action, opens) in enumerate(zip(self._envs, self._native_action, first.tolist(), strict=True)):
            if opens:
                self._begin_next(k)
                continue
            self._rows[k], rewards[k], terminated[k], truncated[k], info = env.step(action)
            if SUCCESS in info and (terminated[k] or truncated[k]):
                success[k] = info[SUCCESS]
        reward, discount = np.array(rewards), 1 - np.array(terminated, np.float32)
        self._rewards += reward
        self._ended, self._shown = np.array(terminated) | np.array(truncated), self._shaped()
        return TimeSteps(
            observation=self._shown,
            reward=reward.astype(np.float32),
            discount=discount,
            first=first,
            ended=self._ended,
            success=success,
        )

    def _begin_next(self, column: int) -> None:
        self._rows[column], _ = self._envs[column].reset(seed=self._log.next(column))
        self._rewards[column] = 0

    def _native(self, action: Array) -> Array:
        """What the policy chose, as the environment counts, scales and shapes it."""
        space, count = self._space, len(action)
        if self._scaled is None:
            native = action + getattr(space, "start", 0)  # MultiBinary has no start
            return native.reshape(count, *space.shape).astype(space.dtype, copy=False)
        middle, half, low, high = self._scaled
        scaled = middle + half * _cut(action.reshape(count, *space.shape).astype(space.dtype), low, high)
        return _cut(scaled, space.low, space.high)  # rounding

    def _shaped(self) -> Array:
        """What the environments show, [b, *O] in a fresh array."""
        moved = self._rows.transpose(self._axes)
        return moved.reshape(self.columns, *self.spec.frame).astype(self.spec.dtype)

    def state(self) -> dict[str, Any]:
        """Everything `load` needs, per column."""
        return {
            **self._log.state(),
            "own": [state.take() for state in self._states] or [None] * self.columns,
            "ended": self._ended.copy(),
            "shown": self._shown.copy(),
            "rewards": self._rewards.copy(),
        }

    def load(self, state: dict[str, Any]) -> Resumed:
        """Take up every open episode that can be; where the last move ended one, the next move opens the next.

        Raises:
            BadEnvironment: it is the state of another environment, or of another number of columns.
        """
        try:
            self._log.load(state)
            self._ended = np.asarray(state["ended"]).astype(bool).reshape(self.columns)
            self._rewards = np.asarray(state["rewards"]).astype(np.float64).reshape(self.columns)
            shown = np.asarray(state["shown"]).astype(self.spec.dtype).reshape(self.columns, *self.spec.frame)
            saved = list(zip(state["moves"], state["own"], shown, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise BadEnvironment(
                f"{self.spec.id}: the open episodes of the checkpoint do not fit {self.columns} columns ({error}); "
                "resume with the job and the version that wrote it"
            ) from error
        lost = np.array(["" if self._ended[k] else self._taken_up(k, *saved[k]) for k in range(self.columns)])
        for column in np.flatnonzero(lost != ""):
            self._begin_next(int(column))
        shown[lost != ""] = self._shaped()[lost != ""]
        self._shown = shown
        return Resumed(shown, lost)

    def _taken_up(self, column: int, moves: str | None, own: dict[str, Any] | None, shown: Array) -> str:
        """Why the open episode of a column cannot be; "" where it is."""
        try:
            self._rows[column], _ = self._envs[column].reset(seed=self._log.seed(column))
            if self._states and own is not None:
                self._states[column].put(own)
                return ""
            if moves is None:
                return f"of more than {episodes.LONGEST} moves none is kept"
            return self._repeated(column, shown)
        except Exception as error:  # whatever an environment raises that does not repeat itself
            return " ".join(f"{type(error).__name__}: {error}".split())

    def _repeated(self, column: int, shown: Array) -> str:
        """Play the moves of its open episode again; why that leads elsewhere, or ""."""
        env, actions, rewards = self._envs[column], self._native(self._log.actions(column)), 0.0
        for move, action in enumerate(actions, 1):
            self._rows[column], reward, terminated, truncated, _ = env.step(action)
            rewards += reward
            if terminated or truncated:
                return f"its episode ended after {move} of {len(actions)} moves when they were repeated"
        if self._shaped()[column].tobytes() != shown.tobytes():
            return f"the {len(actions)} moves of its episode led to another observation when they were repeated"
        if np.float64(rewards).tobytes() != self._rewards[column].tobytes():
            return f"the {len(actions)} moves of its episode led to other rewards when they were repeated"
        return ""

    def close(self) -> None:
        for env in self._envs:  # each by itself: one that raises must not keep the others open
            close(env, self.spec.id)
