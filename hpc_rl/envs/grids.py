"""Grids whose reward has to be explored for: DeepSea, four rooms."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.toy import Outcome, Toy, one_hot, toy_spec, within, zeros
from hpc_rl.types import Numbers, Rules, RulesState

# ---- DeepSea: one sequence of N moves out of 2^N ---------------------------------------------------------------------


def deep_sea(xp: ModuleType, /, *, size: int = 10, mapping_seed: int = 42) -> Toy:
    """A square of N = ``size`` cells a side; a boat dives from the upper left corner, a row each move (Osband et al.
    2020, arXiv 1908.03568, bsuite's deep_sea).

    In each cell one of the two actions goes right, which costs 0.01 / N, the other left, which is free; which is which
    is drawn once from ``mapping_seed``, as bsuite does. Going right in the last cell pays 1, which is a success. An
    episode has N moves. The optimum, 0.99, goes right in every row; random moves meet it in one episode of 2^N.

    Shows the cell one-hot, float32 [N²], nothing but zeros once the boat is below.
    """
    within("toy/deep_sea", size=(size, 2, 100), mapping_seed=(mapping_seed, 0, 2**32 - 1))
    mapping = np.random.RandomState(mapping_seed).binomial(1, 0.5, (size, size))  # 1: action 1 goes right

    def begin(u: Numbers) -> RulesState:
        return {name: zeros(xp, u) for name in ("row", "column", "won")}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        row, column = state["row"], state["column"]
        goes_right = xp.asarray(mapping, device=row.device)[xp.clip(row, 0, size - 1), column]
        right = action == goes_right
        won = right & (column == size - 1)
        reward = xp.where(won, 1.0, 0.0) - xp.where(right, 0.01 / size, 0.0)
        place = xp.clip(column + xp.where(right, 1, -1), 0, size - 1)
        over = row + 1 >= size
        following = {"row": row + 1, "column": place, "won": xp.asarray(won, dtype=xp.int64)}
        return following, reward, xp.where(over, 0.0, 1.0), xp.zeros_like(over)

    def show(state: RulesState) -> Numbers:
        row = one_hot(xp, state["row"], size)  # of zeros behind the last
        return (row[:, :, None] * one_hot(xp, state["column"], size)[:, None]).reshape(len(row), -1)

    def success(state: RulesState) -> Numbers:
        return state["won"] == 1

    return Toy(Rules(toy_spec("toy/deep_sea", (size**2,), 2), begin, move, show, success=success))


# ---- four rooms ------------------------------------------------------------------------------------------------------


def four_rooms(xp: ModuleType, /, *, size: int = 19, limit: int = 100) -> Toy:
    """``size`` × ``size`` places, a wall along the middle row and the middle column, a door in the middle of each of
    its four parts (after Sutton, Precup and Singh 1999).

    Actions 0 to 3 go up, right, down and left; a wall stops them. An episode begins in the upper left corner. The lower
    right corner alone pays 1 and terminates, which is a success: 2 · (size − 1) moves away, 36 of 328 places where size
    is 19. A time limit of ``limit`` moves truncates. Shows the place one-hot, float32 [size²].

    Raises:
        BadEnvironment: the size is even, so that no row is in the middle.
    """
    within("toy/four_rooms", size=(size, 5, 99), limit=(limit, 1, 10_000))
    if size % 2 == 0:
        raise BadEnvironment(f"toy/four_rooms: size = {size} has no middle row; use {size + 1}")
    middle = size // 2
    walls = np.zeros((size, size), bool)
    walls[middle, :] = walls[:, middle] = True
    for door in (middle // 2, size - 1 - middle // 2):
        walls[middle, door] = walls[door, middle] = False

    def begin(u: Numbers) -> RulesState:
        return {name: zeros(xp, u) for name in ("row", "column", "step")}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        down = xp.where(action == 2, 1, xp.where(action == 0, -1, 0))
        right = xp.where(action == 1, 1, xp.where(action == 3, -1, 0))
        row, column = (xp.clip(x + by, 0, size - 1) for x, by in ((state["row"], down), (state["column"], right)))
        free = ~xp.asarray(walls, device=row.device)[row, column]
        row, column = xp.where(free, row, state["row"]), xp.where(free, column, state["column"])
        step, there = state["step"] + 1, (row == size - 1) & (column == size - 1)
        following = {"row": row, "column": column, "step": step}
        return following, xp.where(there, 1.0, 0.0), xp.where(there, 0.0, 1.0), ~there & (step == limit)

    def show(state: RulesState) -> Numbers:
        return one_hot(xp, size * state["row"] + state["column"], size**2)

    def success(state: RulesState) -> Numbers:
        return (state["row"] == size - 1) & (state["column"] == size - 1)

    return Toy(Rules(toy_spec("toy/four_rooms", (size**2,), 4), begin, move, show, success=success))
