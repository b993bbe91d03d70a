"""Perfect play by whole levels of positions: all that follow from some positions, each once, and what they are worth.

With r and d of a move (d = −1 where the other player moves next, 0 where the game ends; `Trajectory`),

    v(s) = max_a q(s, a),   q(s, a) = r(s, a) + d(s, a) v(s′),   v = 0 where the depth is used up

so that only ends of games count (negamax; Knuth & Moore 1975, An Analysis of Alpha–Beta Pruning). A level is one array:
every position that can be reached in so many moves stands in it once, however many ways lead there. All moves of a best
value are to be found, so nothing may be cut off at the root; Connect Four has 5.8 million ways of 8 moves and 184 275
positions behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpc_rl.types import Array, Rules, RulesState

MOST = 4_000_000  # moves of a level
TOGETHER = 200_000  # moves of a level of several positions: more do not stay in a core's cache

OVER = -1  # no position follows


class TooManyPositions(ValueError):
    """A search would need more positions than it may hold."""


@dataclass(frozen=True)
class Moves:
    """All m legal moves of n positions, those of a position side by side and in its order."""

    row: Array  # [m] int32, of which position
    action: Array  # [m] int32
    reward: Array  # [m] float32
    discount: Array  # [m] float32
    child: Array  # [m] int32, the place of the position that follows in the next level, or OVER


@dataclass(frozen=True)
class Level:
    """Distinct positions, and what may be done there."""

    state: RulesState  # {name: [n, …]}
    moves: Moves


def legal_moves(rules: Rules, state: RulesState) -> Array:
    """[n, A] bool."""
    if rules.legal is not None:
        return np.asarray(rules.legal(state))
    return np.ones((len(next(iter(state.values()))), rules.spec.actions.sizes[0]), bool)


def spread(rules: Rules, state: RulesState) -> tuple[Moves, RulesState]:
    """All legal moves of n open positions, and the state [m] behind each; a child is OVER or 0.

    Raises:
        ValueError: somebody has no move, though the game goes on.
    """
    row, action = np.nonzero(legal_moves(rules, state))
    if np.count_nonzero(np.diff(row, prepend=-1)) < len(next(iter(state.values()))):
        raise ValueError(f"{rules.spec.id}: a position has no legal move and is no end; let a pass be one")
    following, reward, discount, truncated = rules.move(at(state, row), action, np.zeros((len(row), 0)))
    child = np.where((discount == 0) | truncated, OVER, 0).astype(np.int32)
    small = (row.astype(np.int32), action.astype(np.int32), reward.astype(np.float32), discount.astype(np.float32))
    return Moves(*small, child), following


def at(state: RulesState, rows: Array) -> RulesState:
    return {name: x[rows] for name, x in state.items()}


def keys(state: RulesState) -> Array:
    """uint64 [n]: equal for equal positions, and as good as never for others (multilinear hash of their words)."""
    n = len(next(iter(state.values())))
    leaves = [np.ascontiguousarray(x).reshape(n, math.prod(x.shape[1:])) for x in state.values()]
    words = [x.view(np.uint64) if x.dtype.itemsize == 8 else x.astype(np.int64).view(np.uint64) for x in leaves]
    key = np.zeros(n, np.uint64)
    rng = np.random.default_rng(18)
    for leaf in words:
        odd = rng.integers(0, 2**63, leaf.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
        mixed = leaf * odd
        mixed ^= mixed >> np.uint64(29)
        key += (mixed * odd[::-1]).sum(1, dtype=np.uint64)
    return key


def distinct(state: RulesState) -> tuple[RulesState, Array]:
    """(each position once, [n] the place of every position among them).

    Raises:
        ValueError: two positions have one key.
    """
    _, first, place = np.unique(keys(state), return_index=True, return_inverse=True)
    once = at(state, first)
    if not all(np.array_equal(x, once[name][place]) for name, x in state.items()):
        raise ValueError("two positions have one key; another multiplier is needed in search/levels.py")
    return once, place


def levels(rules: Rules, state: RulesState, depth: int | None = None, most: int = MOST) -> list[Level]:
    """The levels that follow from n open positions, which are the first, ``depth`` of them or up to all ends.

    Raises:
        TooManyPositions: a level has more than ``most`` moves, or, where no depth is given, all together have.
    """
    found: list[Level] = []
    total = 0
    while depth is None or len(found) < depth:
        moves, following = spread(rules, state)
        total = len(moves.row) + (total if depth is None else 0)
        if total > most:
            raise TooManyPositions(f"more than {most:,} moves to look at")
        on = np.flatnonzero(moves.child != OVER)
        found.append(Level(state, moves))
        if not len(on) or len(found) == depth:
            break
        state, place = distinct(at(following, on))
        moves.child[on] = place
    return found


def back_up(found: list[Level]) -> tuple[Array, list[Array]]:
    """(q [m] of the first level's moves, v [n] of each level)."""
    values: list[Array] = []
    beyond = np.zeros(1, np.float32)
    q = beyond
    for level in reversed(found):
        moves = level.moves
        open_ = moves.child != OVER
        value = beyond[np.where(open_, moves.child, 0)] if values else np.zeros(len(moves.row), np.float32)
        q = moves.reward + moves.discount * np.where(open_, value, 0)
        starts = np.flatnonzero(np.diff(moves.row, prepend=-1))
        beyond = np.maximum.reduceat(q, starts)
        values.insert(0, beyond)
    return q, values


def move_values(rules: Rules, state: RulesState, depth: int, most: int = MOST) -> Array:
    """q [n, A] of n open positions, seen ``depth`` ≥ 1 moves ahead; −∞ where a move is not legal.

    Raises:
        TooManyPositions: what follows from one position does.
    """
    once, place = distinct(state)
    n = len(next(iter(once.values())))
    try:
        found = levels(rules, once, depth, most if n == 1 else min(most, TOGETHER))
    except TooManyPositions:
        if n == 1:
            raise
        halves = np.array_split(np.arange(n), 2)
        return np.concatenate([move_values(rules, at(once, half), depth, most) for half in halves])[place]
    values = np.full((n, rules.spec.actions.sizes[0]), -np.inf, np.float32)
    moves = found[0].moves
    values[moves.row, moves.action] = back_up(found)[0]
    return values[place]


@dataclass(frozen=True)
class Solution:
    """What every position of a game is worth to who moves there; made by `solved`."""

    rules: Rules
    key: Array  # [N] uint64, sorted
    value: Array  # [N] float32

    def move_values(self, state: RulesState) -> Array:
        """q [n, A] of n open positions of the game; −∞ where a move is not legal."""
        moves, following = spread(self.rules, state)
        values = np.full((len(next(iter(state.values()))), self.rules.spec.actions.sizes[0]), -np.inf, np.float32)
        on = moves.child != OVER
        beyond = np.zeros(len(on), np.float32)
        beyond[on] = self.value[np.searchsorted(self.key, keys(at(following, np.flatnonzero(on))))]
        values[moves.row, moves.action] = moves.reward + moves.discount * beyond
        return values


def solved(rules: Rules, most: int = 2 * MOST) -> Solution:
    """A small game solved: all its positions, from their ends back.

    Raises:
        TooManyPositions: it has more than ``most`` moves.
    """
    found = levels(rules, rules.begin(np.zeros((1, rules.begin_uniforms))), most=most)
    _, values = back_up(found)
    key = np.concatenate([keys(level.state) for level in found])
    order = np.argsort(key)
    return Solution(rules, key[order], np.concatenate(values)[order])
