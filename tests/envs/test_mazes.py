"""Maze and KeyChest against walks told by hand and a breadth-first search over pictures of them.

Mutations seen to fail: a wall left out; up and down exchanged; the slip drawn from the other uniform; the key paid
again; the chest without the key; a start in a wall; the time limit a termination.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.mazes import CHEST, COLUMNS, KEY, MAZE_GOAL, MAZE_START, keychest, maze
from hpc_rl.types import Rules

PICTURES = {
    "maze": """
#################
#...............#
#...............#
#..###########..#
#..#G........#..#
#..#.........#..#
#..########..#..#
#............#..#
#............#..#
##############..#
#...............#
#S..............#
#################
""",
    "keychest": """
#################
#...............#
#C..............#
##############..#
#...............#
#...............#
#K.###########..#
#...............#
#...............#
##############..#
#...............#
#...............#
#################
""",
}
UP, DOWN, LEFT, RIGHT = range(4)
SURE = np.array([[0.99, 0.0]])


def picture(name: str) -> list[str]:
    return PICTURES[name].split()


def where(name: str, mark: str) -> tuple[int, int]:
    return next((row, line.index(mark)) for row, line in enumerate(picture(name)) if mark in line)


def searched(name: str, goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Least moves to the goal from each place of the picture."""
    lines, away, todo = picture(name), {goal: 0}, deque([goal])
    while todo:
        row, column = todo.popleft()
        for onto in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if lines[onto[0]][onto[1]] != "#" and onto not in away:
                away[onto] = away[row, column] + 1
                todo.append(onto)
    return away


def at(*places: tuple[int, int], **more: int) -> dict[str, Any]:
    state = {"place": np.array([row * COLUMNS + column for row, column in places])}
    return {**state, **{name: np.full(len(places), x) for name, x in {"step": 0, **more}.items()}}


def test_marks_of_the_pictures() -> None:
    marks = {("maze", "S"): MAZE_START, ("maze", "G"): MAZE_GOAL, ("keychest", "K"): KEY, ("keychest", "C"): CHEST}
    for (name, mark), place in marks.items():
        row, column = where(name, mark)
        assert place == row * COLUMNS + column
    assert searched("maze", where("maze", "G"))[where("maze", "S")] == 58


@pytest.mark.parametrize(("name", "rules"), [("maze", maze(np).rules), ("keychest", keychest(np).rules)])
def test_walls_are_those_of_the_picture(name: str, rules: Rules) -> None:
    lines = picture(name)
    for row, line in enumerate(lines):
        for column, mark in enumerate(line):
            if mark == "#":
                continue
            state = at((row, column), key=0)
            for action, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
                blocked = lines[row + down][column + right] == "#"
                expected = (row, column) if blocked else (row + down, column + right)
                after = rules.move(state, np.array([action]), SURE)[0]["place"][0]
                assert divmod(int(after), COLUMNS) == expected


def test_a_move_of_the_maze_pays_by_the_shortest_way() -> None:
    rules, away = maze(np).rules, searched("maze", where("maze", "G"))
    rng, state, total = np.random.default_rng(3), maze(np).rules.begin(np.zeros((1, 0))), 0.0
    for _ in range(199):
        before = divmod(int(state["place"][0]), COLUMNS)
        state, reward, discount, truncated = rules.move(state, rng.integers(0, 4, 1), rng.random((1, 2)))
        after = divmod(int(state["place"][0]), COLUMNS)
        assert reward[0] == pytest.approx(0.1 * (away[before] - away[after])) and discount[0] == 1 and not truncated[0]
        total += reward[0]
    assert total == pytest.approx(0.1 * (58 - away[after]))
    state, _, discount, truncated = rules.move(state, np.array([UP]), SURE)
    assert truncated[0] and discount[0] == 1, "a time limit is no termination"
    state, reward, discount, truncated = rules.move(at((4, 5)), np.array([LEFT]), SURE)
    assert reward[0] == pytest.approx(0.1) and discount[0] == 0 and not truncated[0]
    assert rules.success is not None and rules.success(state)[0] and not rules.success(at((4, 5)))[0]


def test_the_key_pays_once_and_opens_the_chest() -> None:
    rules = keychest(np).rules
    assert rules.success is not None
    state, reward, discount, _ = rules.move(at((6, 2), key=0), np.array([LEFT]), SURE)
    assert reward[0] == 1 and discount[0] == 1 and state["key"][0] == 1
    assert rules.show(state).tolist() == [[0.0, -0.875, 1.0]]
    state, reward, _, _ = rules.move(state, np.array([LEFT]), SURE)
    assert reward[0] == 0 and state["key"][0] == 1, "it stays where the key was"
    state, reward, discount, _ = rules.move(at((2, 2), key=0), np.array([LEFT]), SURE)
    assert reward[0] == 0 and discount[0] == 1 and not rules.success(state)[0], "no key"
    state, reward, discount, truncated = rules.move(at((2, 2), key=1, step=499), np.array([LEFT]), SURE)
    assert reward[0] == 5 and discount[0] == 0 and not truncated[0] and rules.success(state)[0]
    _, reward, discount, truncated = rules.move(at((4, 5), key=1, step=499), np.array([LEFT]), SURE)
    assert reward[0] == 0 and discount[0] == 1 and truncated[0], "a time limit is no termination"


def test_episodes_begin_anywhere_but_at_key_and_chest() -> None:
    lines, u = picture("keychest"), np.linspace(0, 1, 20_001)[:, None]
    places = keychest(np).rules.begin(u)["place"]
    expected = {(row, k) for row, line in enumerate(lines) for k, mark in enumerate(line) if mark == "."}
    assert {divmod(int(x), COLUMNS) for x in places} == expected
    counts = np.bincount(places)[np.unique(places)]
    assert counts.min() > 0.9 * counts.max()


def test_a_quarter_of_all_moves_slips_into_any_direction() -> None:
    rules, n = keychest(np).rules, 40_000
    u = np.random.default_rng(0).random((n, 2))
    state = {name: np.repeat(x, n) for name, x in at((4, 8), key=0).items()}
    after = rules.move(state, np.full(n, RIGHT), u)[0]["place"]
    share = {step: np.mean(after == 4 * COLUMNS + 8 + step) for step in (1, -1, COLUMNS)}
    assert share[1] == pytest.approx(0.75 + 0.25 / 4, abs=0.01)
    assert share[-1] == pytest.approx(0.25 / 4, abs=0.01) and share[COLUMNS] == pytest.approx(0.25 / 4, abs=0.01)
    assert (keychest(np, slip=0.0).rules.move(state, np.full(n, DOWN), u)[0]["place"] == 5 * COLUMNS + 8).all()


@pytest.mark.parametrize("make", [maze, keychest])
def test_a_slip_is_a_probability(make: Any) -> None:
    with pytest.raises(BadEnvironment, match=r"slip = 1\.5 is refused; it must be from 0 to 1"):
        make(np, slip=1.5)
    with pytest.raises(BadEnvironment, match="steps = 0 is refused"):
        make(np, steps=0)
