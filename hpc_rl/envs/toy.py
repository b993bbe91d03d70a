"""What the built-in environments are made of: a toy as a value, and what their Rules share.

A toy is its Rules, made with an array module (``catch(np)``, ``catch(torch)``), and what lies beside them. Rules know
nothing of the wall clock, of faults, or of the episode before; `RulesEnvironment` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.rules import Effect, Follow
from hpc_rl.types import Actions, Numbers, Rules, RulesState, Spec

LARGEST = 1000  # of a toy's lengths

Outcome = tuple[RulesState, Numbers, Numbers, Numbers]
"""next state, reward [n], discount [n], truncated [n] bool."""


@dataclass(frozen=True)
class Toy:
    """What a `RulesEnvironment` is made of."""

    rules: Rules
    follow: Follow | None = None
    effect: Effect | None = None


def toy_spec(id: str, frame: tuple[int, ...], actions: int, dtype: str = "float32", stack: int = 1) -> Spec:
    return Spec(id, frame, dtype, Actions("discrete", (actions,)), stack, "zeros")


def zeros(xp: ModuleType, u: Numbers) -> Numbers:
    """int64 [n] on the device of the uniforms u [n, K]."""
    return xp.zeros(len(u), dtype=xp.int64, device=u.device)


def one_hot(xp: ModuleType, index: Numbers, size: int) -> Numbers:
    """float32 [n, size] of index [n]."""
    return xp.asarray(index[:, None] == xp.arange(size, device=index.device), dtype=xp.float32)


def float32_rows(xp: ModuleType, *columns: Numbers) -> Numbers:
    """[n, k] of k columns [n]: goals are compared as they are shown, so that a relabelled reward is the move's own."""
    return xp.stack([xp.asarray(x, dtype=xp.float32) for x in columns], 1)


def normal(xp: ModuleType, u: Numbers) -> Numbers:
    """Standard normal [n, k] of uniforms u [n, 2 k] (Box and Muller 1958)."""
    size = u.shape[1] // 2
    return xp.sqrt(-2 * xp.log1p(-u[:, :size])) * xp.cos(2 * math.pi * u[:, size:])


def within(id: str, **limits: tuple[float, float, float]) -> None:
    """Raise BadEnvironment for the first argument whose (value, lowest, highest) is out of order."""
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise BadEnvironment(f"{id}: {name} = {value!r} is refused; it must be from {low:g} to {high:g}")
