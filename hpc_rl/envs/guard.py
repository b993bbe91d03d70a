"""What a gymnasium.Env returns, brought into one form; what a run cannot use is refused in one sentence.

Every move is looked at, and a look costs about a microsecond: the type of each part, and the shape of the observation.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces

from hpc_rl.envs.base import SUCCESS, BadEnvironment
from hpc_rl.types import Array, ObservationPart

_RESET, _STEP = "(observation, info)", "(observation, reward, terminated, truncated, info)"
_SIGNATURE = "reset(self, *, seed=None, options=None)"
TRANSPARENT = (
    gymnasium.wrappers.TimeLimit,
    gymnasium.wrappers.OrderEnforcing,
    gymnasium.wrappers.PassiveEnvChecker,
    gymnasium.wrappers.RecordEpisodeStatistics,
)
_SHOWN = 160  # characters of what came back


def guarded(id: str, env: Any) -> gymnasium.Env[Any, Any]:
    """``env`` with a Box observation and its answers checked where they come from: below Gymnasium's own wrappers,
    which would fail in words of their own, and again above a user's.

    Raises:
        BadEnvironment: no environment, one that resets itself or takes no seed, spaces that have no fixed size.
    """
    if not isinstance(env, gymnasium.Env):
        raise BadEnvironment(f"{id} gives a {type(env).__name__}; it must return one gymnasium.Env")
    layers: list[Any] = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for layer in layers:
        if isinstance(layer, gymnasium.wrappers.Autoreset):
            raise BadEnvironment(f"{id} resets itself (wrapper Autoreset); leave that wrapper out")
        _check_reset(id, layer)
    for name in ("observation_space", "action_space"):
        space = getattr(layers[-1], name, None)
        if not isinstance(space, spaces.Space):
            raise BadEnvironment(f"{id}: {name} is {_told(space)}; it must be one of gymnasium.spaces")
    top = next(k for k, layer in enumerate(layers) if type(layer) not in TRANSPARENT)
    if top < len(layers) - 1:
        layers[-2].env = Guard(id, layers[-1], flat=False)
    guard = Guard(id, layers[top], flat=True)
    if not top:
        return guard
    layers[top - 1].env = guard
    return env


def _check_reset(id: str, env: Any) -> None:
    parameters = inspect.signature(env.reset).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [name for name in ("seed", "options") if name not in parameters]
    if missing and not takes_all:
        raise BadEnvironment(
            f"{id}: reset() of {type(env).__name__} takes no {' and no '.join(missing)}; "
            f"it must be {_SIGNATURE} and return {_RESET}"
        )


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """``env``, whose answers are checked; with ``flat`` all but a Box observation is flattened (Discrete is one-hot).

    Bytes that are flattened beside numbers of another kind are scaled to 0..1, as a network takes them from an
    observation of bytes alone; parts of a Dict that have no fixed size are left out. ``observation_parts``
    tells where each part of a Dict or Tuple lies in the vector.
    """

    def __init__(self, id: str, env: Any, flat: bool) -> None:
        super().__init__(env)
        self._id, self._raw = id, numbers_of(env.observation_space) if flat else env.observation_space
        self._box = isinstance(self._raw, spaces.Box)
        self._flat, self._scale = flat and not self._box, None
        self.observation_parts: dict[str, ObservationPart] = {}
        if self._flat:
            self.observation_space, self._scale = flattened(id, self._raw)
            self.observation_parts = parts_of(id, self._raw)
        space: Any = self.observation_space
        self._shape, self._dtype = space.shape, space.dtype

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As Gymnasium's; info is left out. Raises BadEnvironment."""
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            self._refuse("reset()", _told(result), _RESET)
        return self._observation("reset()", result[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's; of info only "is_success" is kept, a number where it is known. Raises BadEnvironment."""
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            self._refuse("step()", _told(result), _STEP)
        observation, reward, terminated, truncated, info = result
        if type(reward) is not float:
            reward = self._number(reward)
        if type(terminated) is not bool:
            terminated = self._flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._flag("truncated", truncated)
        known = {SUCCESS: self._success(info[SUCCESS])} if SUCCESS in info else {}
        return self._observation("step()", observation), reward, terminated, truncated, known

    def _number(self, reward: Any) -> float:
        if _is_number(reward):
            return float(reward)
        self._refuse("step()", f"{_told(reward)} as the reward", "one number")

    def _success(self, value: Any) -> float:
        if value is None or _is_number(value):
            return np.nan if value is None else float(value)
        self._refuse("step()", f"{_told(value)} as info['{SUCCESS}']", "True, False or one number")

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, (int, np.integer, np.bool_)) or (isinstance(value, np.ndarray) and value.ndim == 0):
            return bool(value)
        self._refuse("step()", f"{_told(value)} as {name}", "True or False")

    def _observation(self, method: str, x: Any) -> Any:
        if self._box:
            return self._array(method, x)
        if not self._flat:
            return x  # its parts are looked at where they are flattened
        try:
            flat = np.asarray(spaces.flatten(self._raw, x))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):  # what flatten raises at a wrong part
            flat = np.zeros(0)
        if flat.shape != self._shape:
            self._refuse(method, f"the observation {_told(x)}", f"one of {_short(self._raw)}")
        return flat if self._scale is None else flat * self._scale

    def _array(self, method: str, x: Any) -> Array:
        if type(x) is np.ndarray and x.shape == self._shape and x.dtype is self._dtype:
            return x
        try:
            found: Array = np.asarray(x)
        except ValueError:  # rows of unequal length
            found = np.zeros(0, object)
        if found.shape != self._shape or not (
            found.dtype == self._dtype or np.can_cast(found.dtype, self._dtype, "same_kind")
        ):
            must = f"an array of shape {self._shape} and dtype {self._dtype}"
            self._refuse(method, f"{_told(x)} as the observation", must)
        return found

    def _refuse(self, method: str, what: str, must: str) -> NoReturn:
        raise BadEnvironment(f"{self._id}: {method} returned {what}; it must return {must}")


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.number, np.bool_)) or (
        isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "biuf"
    )


def numbers_of(space: Any) -> Any:
    """The space, a Dict without those of its parts that have no fixed size, as a sequence or graph."""
    if not isinstance(space, spaces.Dict):
        return space
    parts = {name: numbers_of(part) for name, part in space.spaces.items()}
    fixed = {name: part for name, part in parts.items() if _has_fixed_size(part)}
    return spaces.Dict(fixed) if fixed else space  # which is refused


def _has_fixed_size(space: Any) -> bool:
    try:
        return bool(space.is_np_flattenable and spaces.flatdim(space))
    except NotImplementedError:  # a class of spaces that Gymnasium does not know
        return False


def parts_of(id: str, space: Any) -> dict[str, ObservationPart]:
    """Where the parts of a Dict or Tuple lie in the vector, by name; none of other spaces.

    A part of a part is named outer/inner, a part of a Tuple by its number.
    """
    parts: dict[str, ObservationPart] = {}

    def add(prefix: str, space: Any, start: int) -> int:
        if not isinstance(space, (spaces.Dict, spaces.Tuple)):
            stop = start + int(spaces.flatdim(space))
            if prefix in parts:
                raise BadEnvironment(f"{id}: two parts of its observations are both named {prefix!r}; rename one")
            shape = space.shape if isinstance(space, (spaces.Box, spaces.MultiBinary)) else (stop - start,)
            parts[prefix] = ObservationPart(start, stop, tuple(shape))
            return stop
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, inner in named:
            start = add(f"{prefix}/{name}" if prefix else str(name), inner, start)
        return start

    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        add("", space, 0)
    return parts


def flattened(id: str, space: spaces.Space[Any]) -> tuple[spaces.Box, Array | None]:
    """The Box that ``space`` is flattened to, and what its entries are multiplied with: None is 1."""
    if not _has_fixed_size(space):
        raise BadEnvironment(f"{id}: observations {_short(space)} have no fixed size; wrap it to give a Box of numbers")
    flat: Any = spaces.flatten_space(space)
    scale = _scale(space)
    if flat.dtype == np.uint8 or (scale == 1).all():
        return flat, None
    return spaces.Box(-np.inf, np.inf, flat.shape, np.float32), scale


def _scale(space: Any) -> Array:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return np.concatenate([np.zeros(0, np.float32), *(_scale(part) for part in parts)])
    value = 1 / 255 if isinstance(space, spaces.Box) and space.dtype == np.uint8 else 1
    return np.full(spaces.flatdim(space), value, np.float32)


def _told(x: Any) -> str:
    """What came back, in a few words."""
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape} and dtype {x.dtype}"
    if isinstance(x, (tuple, list)):
        return f"{len(x)} values ({', '.join(type(part).__name__ for part in x[:8])})"
    return _short(x) if x is None or isinstance(x, (int, float, str)) else f"a {type(x).__name__} ({_short(x)})"


def _short(x: Any) -> str:
    text = " ".join((str(x) if isinstance(x, spaces.Space) else repr(x)).split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
