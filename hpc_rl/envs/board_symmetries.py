"""Turns and mirrors of a square board, for frames and for actions that name its places."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from hpc_rl.types import Array, Map, Numbers


def turns_and_mirrors(xp: ModuleType, size: int, others: int = 0) -> tuple[tuple[Map, Map], ...]:
    """The seven maps of frames [.., size, size] and of actions that change a board; see `Rules.symmetries`.

    Action size · row + column names a place; ``others`` actions behind them (a pass) stay what they are.
    """
    kinds = [(quarter, mirrored) for mirrored in (False, True) for quarter in range(4) if quarter or mirrored]
    return tuple((_of_frames(xp, *kind), _of_actions(xp, size, others, *kind)) for kind in kinds)


def _of_frames(xp: ModuleType, quarter: int, mirrored: bool) -> Map:
    def frames(x: Numbers) -> Numbers:
        turned = xp.rot90(x, quarter, (-2, -1))
        return xp.flip(turned, (-1,)) if mirrored else turned

    return frames


def _of_actions(xp: ModuleType, size: int, others: int, quarter: int, mirrored: bool) -> Map:
    onto: Callable[[Array], Array] = _of_frames(np, quarter, mirrored)
    places = size * size
    table = np.arange(places + others)
    table[onto(np.arange(places).reshape(size, size)).ravel()] = np.arange(places)

    def actions(action: Numbers) -> Numbers:
        return xp.asarray(table, device=action.device)[action]

    return actions
