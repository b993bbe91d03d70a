"""Grids in which a far place pays: a maze, and a key that opens a chest.

Geometry, rewards and noise are those of the discrete tasks of HRAC (Zhang et al. 2020, arXiv 2006.11485): 13 × 17
places with walls around and across. Actions 0 to 3 go up, down, left and right, a wall stops them, and with probability
``slip`` any action is taken in the place of the chosen one. What differs: coordinates are shown in −1..1.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hpc_rl.envs.toy import LARGEST, Outcome, Toy, toy_spec, within, zeros
from hpc_rl.types import Array, Numbers, Rules, RulesState

ROWS, COLUMNS = 13, 17
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right as (row, column)
Wall = tuple[int, int, int, int]  # its first and last row, its first and last column
AROUND: tuple[Wall, ...] = (
    (0, 0, 0, COLUMNS - 1),
    (ROWS - 1, ROWS - 1, 0, COLUMNS - 1),
    (0, ROWS - 1, 0, 0),
    (0, ROWS - 1, COLUMNS - 1, COLUMNS - 1),
)
SPIRAL: tuple[Wall, ...] = ((9, 9, 0, 13), (3, 9, 13, 13), (3, 3, 3, 13), (3, 6, 3, 3), (6, 6, 3, 10))
FLOORS: tuple[Wall, ...] = ((3, 3, 0, 13), (6, 6, 3, 13), (9, 9, 0, 13))


def place(row: int, column: int) -> int:
    """Places are numbered row by row."""
    return row * COLUMNS + column


def free_places(walls: tuple[Wall, ...]) -> Array:
    """bool [places]: no wall stands there."""
    free = np.ones((ROWS, COLUMNS), bool)
    for top, bottom, left, right in AROUND + walls:
        free[top : bottom + 1, left : right + 1] = False
    return free.ravel()


def neighbours(free: Array) -> Array:
    """int64 [places, 4]: where each action leads from each free place; a wall leads nowhere."""
    table = np.tile(np.arange(free.size)[:, None], (1, len(MOVES)))
    for at in np.flatnonzero(free):
        for action, (down, right) in enumerate(MOVES):
            onto = at + down * COLUMNS + right
            table[at, action] = onto if free[onto] else at
    return table


def distances(table: Array, goal: int) -> Array:
    """int64 [places]: least moves to ``goal`` without slips; the number of places where no way leads there."""
    away = np.full(len(table), len(table))
    away[goal] = 0
    for _ in table:
        away = np.minimum(away, 1 + away[table].min(1))
    return away


def walked(xp: ModuleType, table: Array, at: Numbers, action: Numbers, u: Numbers, slip: float) -> Numbers:
    """Places [n] after an action [n] each, of which u [n, 2] lets some slip."""
    other = xp.clip(xp.asarray(xp.floor(u[:, 1] * len(MOVES)), dtype=xp.int64), 0, len(MOVES) - 1)
    return xp.asarray(table, device=at.device)[at, xp.where(u[:, 0] < slip, other, action)]


# Row and column of each place, each in −1..1; a table, since NumPy and torch divide integers in another precision.
SCALED = np.stack(np.divmod(np.arange(ROWS * COLUMNS), COLUMNS), 1) * 2 / (ROWS - 1, COLUMNS - 1) - 1


def seen(xp: ModuleType, at: Numbers) -> Numbers:
    """float32 [n, 2] of places [n]."""
    return xp.asarray(SCALED.astype(np.float32), device=at.device)[at]


MAZE_START, MAZE_GOAL = place(11, 1), place(4, 4)
KEY, CHEST = place(6, 1), place(2, 1)


def maze(xp: ModuleType, /, *, steps: int = 200, slip: float = 0.25) -> Toy:
    """A spiral from the lower left corner to its middle, 58 moves away.

    A move nearer to the goal by the shortest way pays 0.1 and one away from it −0.1; the goal terminates, which is a
    success. A time limit of ``steps`` moves truncates. Shows row and column [2], each in −1..1.
    """
    within("toy/maze", steps=(steps, 1, LARGEST), slip=(slip, 0, 1))
    table = neighbours(free_places(SPIRAL))
    away = distances(table, MAZE_GOAL)

    def begin(u: Numbers) -> RulesState:
        return {"place": zeros(xp, u) + MAZE_START, "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        before, step = state["place"], state["step"] + 1
        after = walked(xp, table, before, action, u, slip)
        far = xp.asarray(away, device=before.device)
        over = after == MAZE_GOAL
        return (
            {"place": after, "step": step},
            0.1 * (far[before] - far[after]),
            1.0 - 1.0 * over,
            ~over & (step == steps),
        )

    def show(state: RulesState) -> Numbers:
        return seen(xp, state["place"])

    def success(state: RulesState) -> Numbers:
        return state["place"] == MAZE_GOAL

    return Toy(Rules(toy_spec("toy/maze", (2,), len(MOVES)), begin, move, show, 0, 2, success=success))


def keychest(xp: ModuleType, /, *, steps: int = 500, slip: float = 0.25) -> Toy:
    """Four floors, one above the other: the key lies on the left of the second and third, the chest on the first.

    An episode begins at any free place but those two. The key pays 1, once; the chest pays 5 to who has the key and
    terminates, which is a success; nothing else pays. A time limit of ``steps`` moves truncates. Shows [3]: row and
    column in −1..1, and 1 with the key, else 0.
    """
    within("toy/keychest", steps=(steps, 1, LARGEST), slip=(slip, 0, 1))
    free = free_places(FLOORS)
    table = neighbours(free)
    starts = np.setdiff1d(np.flatnonzero(free), [KEY, CHEST])

    def begin(u: Numbers) -> RulesState:
        drawn = xp.clip(xp.asarray(xp.floor(u[:, 0] * len(starts)), dtype=xp.int64), 0, len(starts) - 1)
        at = xp.asarray(starts, device=u.device)[drawn]
        return {"place": at, "key": zeros(xp, u), "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        after, had, step = walked(xp, table, state["place"], action, u, slip), state["key"], state["step"] + 1
        key = xp.where(after == KEY, 1, had)
        over = (after == CHEST) & (had == 1)
        reward = 1.0 * (key - had) + 5.0 * over
        return {"place": after, "key": key, "step": step}, reward, 1.0 - 1.0 * over, ~over & (step == steps)

    def show(state: RulesState) -> Numbers:
        row, column = seen(xp, state["place"]).T
        return xp.stack([row, column, xp.asarray(state["key"], dtype=xp.float32)], 1)

    def success(state: RulesState) -> Numbers:
        return (state["place"] == CHEST) & (state["key"] == 1)

    return Toy(Rules(toy_spec("toy/keychest", (3,), len(MOVES)), begin, move, show, 1, 2, success=success))
