"""Othello and Go against slow twins on lists of places, and against public counts.

Mutations seen to fail: Othello — a direction forgotten; stones turned that no own stone closes; columns that run
on into the next row; a pass beside placings; the game over when one player cannot place; the sign of the result. Go —
suicide allowed; a taken group left; superko that looks at the last position alone; a pass ends the game alone; komi for
black; empty regions that touch both colours counted; groups joined across two colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.go import go
from hpc_rl.envs.othello import othello
from hpc_rl.search.levels import OVER, at, spread
from hpc_rl.types import Array, Rules, RulesState

NO_U = np.zeros((1, 0))
WAYS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


class Othello:
    """The twin: places {(row, column): player}, players 0 and 1."""

    def __init__(self, size: int) -> None:
        self.size, self.mover, h = size, 0, size // 2
        self.stones = {(h - 1, h): 0, (h, h - 1): 0, (h - 1, h - 1): 1, (h, h): 1}

    def turned(self, place: tuple[int, int], player: int) -> list[tuple[int, int]]:
        every: list[tuple[int, int]] = []
        for down, right in WAYS:
            line, at = [], (place[0] + down, place[1] + right)
            while self.stones.get(at) == 1 - player:
                line.append(at)
                at = (at[0] + down, at[1] + right)
            if self.stones.get(at) == player:
                every += line
        return every if place not in self.stones else []

    def placings(self, player: int) -> list[int]:
        return [k for k in range(self.size**2) if self.turned(divmod(k, self.size), player)]

    def legal(self) -> list[int]:
        return self.placings(self.mover) or [self.size**2]

    def play(self, action: int) -> tuple[float, float]:
        player = self.mover
        if action < self.size**2:
            place = divmod(action, self.size)
            self.stones |= dict.fromkeys([place, *self.turned(place, player)], player)
        self.mover = 1 - player
        if self.placings(0) or self.placings(1):
            return 0.0, -1.0
        held = list(self.stones.values())
        return float(np.sign(held.count(player) - held.count(1 - player))), 0.0

    def planes(self) -> Array:
        frames = np.zeros((2, self.size, self.size))
        for place, player in self.stones.items():
            frames[int(player != self.mover)][place] = 1
        return frames


class Go:
    """The twin: groups by flood fill, whole boards kept for superko."""

    def __init__(self, size: int, komi: float) -> None:
        self.size, self.komi, self.board = size, komi, [0] * size**2
        self.turn, self.passed, self.before = 0, False, {tuple(self.board)}

    def beside(self, k: int) -> list[int]:
        row, column = divmod(k, self.size)
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        return [r * self.size + c for r, c in around if 0 <= r < self.size and 0 <= c < self.size]

    def region(self, board: list[int], k: int) -> tuple[set[int], set[int]]:
        """(all places joined with k that hold the same, what the places beside them hold)."""
        group, todo, edge = {k}, [k], set()
        while todo:
            for other in self.beside(todo.pop()):
                if board[other] != board[k]:
                    edge.add(board[other])
                elif other not in group:
                    group.add(other)
                    todo.append(other)
        return group, edge

    def after(self, k: int) -> list[int] | None:
        color, board = 1 - 2 * (self.turn % 2), [*self.board]
        if board[k]:
            return None
        board[k] = color
        for other in self.beside(k):
            if board[other] == -color:
                group, edge = self.region(board, other)
                if 0 not in edge:
                    board = [0 if j in group else x for j, x in enumerate(board)]
        suicide = 0 not in self.region(board, k)[1]
        return None if suicide or tuple(board) in self.before else board

    def legal(self) -> list[int]:
        return [k for k in range(self.size**2) if self.after(k) is not None] + [self.size**2]

    def play(self, action: int) -> tuple[float, float]:
        color, passes = 1 - 2 * (self.turn % 2), action == self.size**2
        if not passes:
            board = self.after(action)
            assert board is not None
            self.board = board
        self.before.add(tuple(self.board))
        self.turn += 1
        over = (passes and self.passed) or self.turn == 3 * self.size**2
        self.passed = passes
        return (float(np.sign(color * (self.area() - self.komi))), 0.0) if over else (0.0, -1.0)

    def area(self) -> int:
        points = 0
        for k, stone in enumerate(self.board):
            edge = self.region(self.board, k)[1]
            points += stone or sum(edge) * (len(edge) == 1)
        return points

    def planes(self) -> Array:
        color, board = 1 - 2 * (self.turn % 2), np.array(self.board)
        planes = [board == color, board == -color, np.full(self.size**2, color == 1)]
        return np.array(planes, float).reshape(3, self.size, self.size)


CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("toy/othello", {"size": 4}, lambda: Othello(4)),
    ("toy/othello", {}, lambda: Othello(6)),
    ("toy/othello", {"size": 8}, lambda: Othello(8)),
    ("toy/go", {"size": 2, "komi": 0.0}, lambda: Go(2, 0)),
    ("toy/go", {"size": 3, "komi": 2.5}, lambda: Go(3, 2.5)),
    ("toy/go", {"komi": 0}, lambda: Go(5, 0)),
]


@pytest.mark.parametrize(("id", "arguments", "twin_of"), CASES)
def test_games_equal_the_twin(id: str, arguments: dict[str, Any], twin_of: Any) -> None:
    rules = TOYS[id](np, **arguments).rules
    assert rules.legal is not None
    rng, ends, passes = np.random.default_rng(7), set(), 0
    for _ in range(20):
        twin, state, discount = twin_of(), rules.begin(NO_U), -1.0
        while discount:
            legal = np.flatnonzero(rules.legal(state)[0])
            assert legal.tolist() == twin.legal()
            assert np.array_equal(rules.show(state)[0], twin.planes())
            action = int(rng.choice(legal if len(legal) < 2 or rng.random() < 0.03 else legal[:-1]))
            passes += action == rules.spec.actions.sizes[0] - 1
            state, reward, discounts, truncated = rules.move(state, np.array([action]), NO_U)
            expected, discount = twin.play(action)
            assert (reward[0], discounts[0], truncated[0]) == (expected, discount, False)
        ends.add(expected)
    assert passes and ({-1.0, 1.0} <= ends or rules.spec.frame[1] == 2)


def leaves(rules: Rules, depth: int) -> list[int]:
    """Sequences of so many moves."""
    state, counts = rules.begin(NO_U), []
    for _ in range(depth):
        moves, state = spread(rules, state)
        counts.append(len(moves.row))
        state = at(state, np.flatnonzero(moves.child != OVER))
    return counts


def test_othello_has_as_many_games_as_are_known() -> None:
    """The On-Line Encyclopedia of Integer Sequences, A124004."""
    assert leaves(othello(np, size=8).rules, 8) == [4, 12, 56, 244, 1396, 8200, 55_092, 390_216]


def test_go_has_as_many_boards_as_are_known() -> None:
    """57 boards of 2 × 2 are legal, 12 675 of 3 × 3 (Tromp & Farnebäck 2006): random games reach the former, all."""
    rules, rng = go(np, size=2, limit=40).rules, np.random.default_rng(0)
    assert rules.legal is not None
    state, boards = rules.begin(np.zeros((300, 0))), set()
    for _ in range(30):
        legal = rules.legal(state)
        state = rules.move(state, (legal * rng.random(legal.shape)).argmax(1), NO_U)[0]
        boards |= {tuple(board) for board in state["cells"].tolist()}
    assert len(boards) == 57


def played(moves: str, size: int = 5) -> RulesState:
    """Go after moves like ``a1 b2 pass``, a1 at the top left."""
    rules = go(np, size=size, komi=0.5).rules
    assert rules.legal is not None
    state = rules.begin(NO_U)
    for move in moves.split():
        action = number(move, size)
        assert rules.legal(state)[0, action], move
        state = rules.move(state, np.array([action]), NO_U)[0]
    return state


def number(move: str, size: int = 5) -> int:
    return size**2 if move == "pass" else (int(move[1]) - 1) * size + "abcde".index(move[0])


def test_a_ko_is_not_taken_back_at_once_but_after_a_change() -> None:
    """Black takes at c2, white may take back at b2 only once another stone lies somewhere else."""
    rules = go(np, komi=0.5).rules
    assert rules.legal is not None
    ko = played("b1 c1 a2 d2 b3 c3 e5 b2 c2")
    assert ko["cells"][0, number("b2")] == 0  # taken
    assert not rules.legal(ko)[0, number("b2")]
    state = ko
    for move in ("e1", "e4"):
        state = rules.move(state, np.array([number(move)]), NO_U)[0]
    assert rules.legal(state)[0, number("b2")]
    both = rules.move(rules.move(ko, np.array([25]), NO_U)[0], np.array([number("e4")]), NO_U)[0]
    assert rules.legal(both)[0, number("b2")]  # another stone of black's is a change, too


def test_superko_is_positional() -> None:
    """On 2 × 1 … whoever moves: a board that was there with the other player to move is refused all the same."""
    rules = go(np, size=2, komi=0.5).rules
    assert rules.legal is not None
    state = played("a1 b1 b2", 2)  # black: a1 b2, white: taken
    assert state["cells"].tolist() == [[1, 0, 0, 1]]
    after = rules.move(rules.move(state, np.array([4]), NO_U)[0], np.array([1]), NO_U)[0]
    assert after["cells"].tolist() == [[1, 1, 0, 1]]
    taken = rules.move(after, np.array([2]), NO_U)[0]  # white takes three
    assert taken["cells"].tolist() == [[0, 0, -1, 0]]


@pytest.mark.parametrize(("id", "arguments"), [("toy/othello", {}), ("toy/go", {"size": 4}), ("toy/tictactoe", {})])
def test_turned_games_go_on_as_they_would_have(id: str, arguments: dict[str, Any]) -> None:
    rules = TOYS[id](np, **arguments).rules
    assert rules.legal is not None and len(rules.symmetries) == 7
    u, rng, seen = np.zeros((10, 0)), np.random.default_rng(1), set()
    for of_frames, of_actions in rules.symmetries:
        state, other, on = rules.begin(u), rules.begin(u), np.ones(10, bool)
        if id == "toy/othello":  # whose first position is another, mirrored
            same = np.array_equal(of_frames(rules.show(state)), rules.show(state))
            if not same:
                continue
        for _ in range(30):
            legal = rules.legal(state) & on[:, None]
            action = (np.where(legal.any(1)[:, None], legal, 1) * rng.random(legal.shape)).argmax(1)
            moved, reward, discount, _ = rules.move(state, action, u)
            onto, paid, ends, _ = rules.move(other, of_actions(action), u)
            assert np.array_equal(reward[on], paid[on]) and np.array_equal(discount[on], ends[on])
            on = on & (discount != 0)
            assert np.array_equal(of_frames(rules.show(moved))[on], rules.show(onto)[on])
            state, other = moved, onto
        seen.add(tuple(of_actions(np.arange(rules.spec.actions.sizes[0])).tolist()))
        assert torch.equal(
            TOYS[id](torch, **arguments).rules.symmetries[0][1](torch.arange(9)),
            torch.from_numpy(rules.symmetries[0][1](np.arange(9))),
        )
    assert len(seen) == (3 if id == "toy/othello" else 7)


def test_boards_that_cannot_be() -> None:
    with pytest.raises(BadEnvironment, match="size = 5 is refused; it must be even"):
        othello(np, size=5)
    with pytest.raises(BadEnvironment, match="size = 10 is refused; it must be from 2 to 9"):
        go(np, size=10)


@pytest.mark.parametrize(
    ("id", "arguments", "name"),
    [("toy/connect_four", {}, "connect_four"), ("toy/tictactoe", {}, "tic_tac_toe"),
     ("toy/othello", {"size": 8}, "othello"),
     ("toy/go", {"komi": 0.5}, "go(board_size=5,komi=0.5,max_game_length=75)")],
)  # fmt: skip
def test_equals_open_spiel(id: str, arguments: dict[str, Any], name: str) -> None:
    """Whose Othello ends two passes later, and whose Go ends with a move that makes a position again."""
    pyspiel = pytest.importorskip("pyspiel")
    rules, game, rng = TOYS[id](np, **arguments).rules, pyspiel.load_game(name), np.random.default_rng(2)
    assert rules.legal is not None
    for _ in range(10):
        theirs, state, discount, first = game.new_initial_state(), rules.begin(NO_U), -1.0, True
        while discount and not theirs.is_terminal():
            legal = np.flatnonzero(rules.legal(state)[0])
            assert set(legal.tolist()) <= set(theirs.legal_actions())
            assert all(theirs.child(action).is_terminal() for action in {*theirs.legal_actions()} - {*legal.tolist()})
            action = int(rng.choice(legal))
            theirs.apply_action(action)
            state, reward, discounts, _ = rules.move(state, np.array([action]), NO_U)
            discount, first = float(discounts[0]), not first
        while not theirs.is_terminal():
            theirs.apply_action(theirs.legal_actions()[0])
        assert theirs.returns()[int(first)] == reward[0]
