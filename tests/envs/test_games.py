"""Board games against slow twins on lists of stones, and against public counts.

Mutations seen to fail: the empty bit above a column left out; a draw that pays; discount 1 in place of −1; sides not
exchanged; a mirror of actions that stay; one direction of lines forgotten; a stone on the lowest place of a column.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.envs.make import make
from hpc_rl.types import Array, Map, Rules, RulesState

NO_U = np.zeros((1, 0))


class Twin:
    """A game as a person would write it down: board[row from the top][column] is "", 0 or 1."""

    def __init__(self, rows: int, columns: int, line: int, falls: bool) -> None:
        self.board = [[""] * columns for _ in range(rows)]
        self.rows, self.columns, self.line, self.falls, self.mover = rows, columns, line, falls, "0"

    def legal(self) -> list[bool]:
        if self.falls:
            return [not self.board[0][column] for column in range(self.columns)]
        return [not self.board[k // self.columns][k % self.columns] for k in range(self.rows * self.columns)]

    def play(self, action: int) -> tuple[float, float]:
        if self.falls:
            row, column = max(r for r in range(self.rows) if not self.board[r][action]), action
        else:
            row, column = divmod(action, self.columns)
        self.board[row][column] = self.mover
        won = any(self._line(r, c, *way) for r in range(self.rows) for c in range(self.columns)
                  for way in ((0, 1), (1, 0), (1, 1), (1, -1)))  # fmt: skip
        full = all(place for line in self.board for place in line)
        self.mover = "1" if self.mover == "0" else "0"
        return float(won), 0.0 if won or full else -1.0

    def _line(self, row: int, column: int, down: int, right: int) -> bool:
        places = [(row + k * down, column + k * right) for k in range(self.line)]
        return all(0 <= r < self.rows and 0 <= c < self.columns and self.board[r][c] == self.mover for r, c in places)

    def planes(self) -> Array:
        other = "1" if self.mover == "0" else "0"
        return np.array([[[place == side for place in line] for line in self.board] for side in (self.mover, other)])


SIZES = [
    ("toy/tictactoe", 3, 3, 3),
    ("toy/tictactoe", 4, 5, 4),
    ("toy/connect_four", 6, 7, 4),
    ("toy/connect_four", 5, 4, 4),
    ("toy/connect_four", 4, 9, 3),
    ("toy/connect_four", 7, 7, 5),
]


@pytest.mark.parametrize(("id", "rows", "columns", "line"), SIZES)
def test_games_equal_the_twin(id: str, rows: int, columns: int, line: int) -> None:
    rules = TOYS[id](np, rows=rows, columns=columns, line=line).rules
    assert rules.legal is not None
    rng, ends = np.random.default_rng(rows), set()
    for _ in range(60):
        twin, state = Twin(rows, columns, line, id == "toy/connect_four"), rules.begin(NO_U)
        discount = -1.0
        while discount:
            legal = rules.legal(state)[0]
            assert legal.tolist() == twin.legal()
            assert np.array_equal(rules.show(state)[0], twin.planes())
            action = rng.choice(np.flatnonzero(legal))
            state, reward, discounts, truncated = rules.move(state, np.array([action]), NO_U)
            expected, discount = twin.play(int(action))
            assert (reward[0], discounts[0], truncated[0]) == (expected, discount, False)
        assert np.array_equal(rules.show(state)[0], twin.planes())
        ends.add(expected)
    assert ends == {0.0, 1.0} or (line == 3 and rows > 3)


def spread(rules: Rules, state: RulesState) -> tuple[RulesState, Array, Array]:
    """All positions one legal move on, with reward and discount [m]."""
    assert rules.legal is not None
    row, action = np.nonzero(rules.legal(state))
    before = {name: x[row] for name, x in state.items()}
    following, reward, discount, _ = rules.move(before, action, np.zeros((len(row), 0)))
    return following, reward, discount


def distinct(state: RulesState) -> RulesState:
    pairs = np.unique(np.stack(list(state.values()), 1), axis=0)
    return {name: pairs[:, k] for k, name in enumerate(state)}


def test_tictactoe_has_255168_games() -> None:
    """131 184 won by the first player, 77 904 by the second, 46 080 drawn."""
    rules = tictactoe(np).rules
    state, ends = rules.begin(NO_U), []
    for ply in range(9):
        state, reward, discount = spread(rules, state)
        ends += [((1 - 2 * (ply % 2)) * reward[discount == 0]).astype(int)]
        state = {name: x[discount != 0] for name, x in state.items()}
    results = np.concatenate(ends)
    assert [int((results == x).sum()) for x in (1, -1, 0)] == [131_184, 77_904, 46_080]


def test_connect_four_has_as_many_positions_as_are_known() -> None:
    """Distinct positions after so many moves: The On-Line Encyclopedia of Integer Sequences, A212693."""
    rules = connect_four(np).rules
    state, counts = rules.begin(NO_U), []
    for _ in range(8):
        following, _, discount = spread(rules, state)
        counts.append(len(distinct(following)["mine"]))
        state = distinct({name: x[discount != 0] for name, x in following.items()})
    assert counts == [7, 49, 238, 1120, 4263, 16_422, 54_859, 184_275]


@pytest.mark.parametrize(("id", "rows", "columns", "line"), SIZES)
def test_a_mirrored_game_goes_on_as_it_would_have(id: str, rows: int, columns: int, line: int) -> None:
    rules = TOYS[id](np, rows=rows, columns=columns, line=line).rules
    assert len(rules.symmetries) == (7 if id == "toy/tictactoe" and rows == columns else 1)
    for symmetry in rules.symmetries:
        goes_on(rules, *symmetry)


def goes_on(rules: Rules, of_frames: Map, of_actions: Map) -> None:
    assert rules.legal is not None
    rng = np.random.default_rng(1)
    u = np.zeros((20, 0))
    state, other = rules.begin(u), rules.begin(u)
    over = np.zeros(20, bool)
    for _ in range(rules.spec.frame[1] * rules.spec.frame[2]):
        legal = rules.legal(state) & ~over[:, None]
        weights = np.where(legal.any(1)[:, None], legal, 1) * rng.random(legal.shape)
        action = weights.argmax(1)
        state, reward, discount, _ = rules.move(state, action, u)
        other, same, ends, _ = rules.move(other, of_actions(action), u)
        over |= discount == 0
        assert np.array_equal(reward[~over], same[~over]) and np.array_equal(discount[~over], ends[~over])
        assert np.array_equal(of_frames(rules.show(state)), rules.show(other))
        state = {name: np.where(over, 0, x) for name, x in state.items()}
        other = {name: np.where(over, 0, x) for name, x in other.items()}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"rows": 8, "columns": 7}, "8 × 7 places are refused"), ({"line": 8}, "line = 8 is refused"),
     ({"rows": 0}, "rows = 0 is refused")],
)  # fmt: skip
def test_boards_that_cannot_be(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(BadEnvironment, match=sentence):
        connect_four(np, **arguments)


def test_a_move_that_is_not_legal_is_refused() -> None:
    environment = make("toy/tictactoe", {}, 2)
    environment.reset(np.array([1, 2]))
    environment.send(np.array([4, 0]))
    environment.recv()
    environment.send(np.array([4, 3]))
    with pytest.raises(BadEnvironment, match=r"action 4 in column 0 is not legal there; 0, 1, 2, 3, 5, 6, 7, 8 "):
        environment.recv()


def test_the_action_behind_an_end_may_be_any() -> None:
    """It opens the next game."""
    environment = make("toy/connect_four", {"rows": 1, "columns": 2, "line": 2}, 1)
    environment.reset(np.array([1]))
    for action in (0, 1):
        environment.send(np.array([action]))
        steps = environment.recv()
    assert steps.discount[0] == 0
    environment.send(np.array([1]))
    assert environment.recv().first[0]
