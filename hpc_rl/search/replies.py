"""All games of a player that does not draw against everything that the other player may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_rl.search.levels import OVER, TooManyPositions, at, distinct, legal_moves, spread
from hpc_rl.types import Array, Rules, RulesState

Answers = Callable[[RulesState], Array]
"""Positions [n] -> the player's action [n] in each."""

AT_ONCE = 512  # positions that the player is asked about


@dataclass(frozen=True)
class Replies:
    """Lines are sequences of moves from the beginning to an end; positions, of each ply, are where the player moves."""

    won: int
    drawn: int
    lost: int
    positions: int


def all_replies(rules: Rules, answers: Answers, first: bool, most: int) -> Replies:
    """Every line of the player, who moves ``first`` or second, against every reply, in a game in which moves alternate.

    Raises:
        TooManyPositions: more than ``most`` positions follow.
        ValueError: the player's move is not legal.
    """
    state = rules.begin(np.zeros((1, rules.begin_uniforms)))
    ways = np.ones(1, object)  # lines that lead to each position; whole numbers of any size
    counts, positions = {1: 0, 0: 0, -1: 0}, 0

    def count(result: Array, ways: Array) -> None:
        for sign in counts:
            counts[sign] += int(ways[np.sign(result) == sign].sum())

    if not first:
        moves, state = spread(rules, state)
        ways = ways[moves.row]
    while len(ways):
        state, place = distinct(state)
        merged = np.zeros(len(next(iter(state.values()))), object)
        np.add.at(merged, place, ways)
        ways, positions = merged, positions + len(merged)
        if positions > most:
            raise TooManyPositions(f"more than {most:,} positions to ask the player about")
        state, reward, on = _answered(rules, answers, state)
        count(reward[~on], ways[~on])
        state, ways = at(state, np.flatnonzero(on)), ways[on]
        if not len(ways):
            break
        moves, following = spread(rules, state)
        ended = moves.child == OVER
        count(-moves.reward[ended], ways[moves.row[ended]])
        state, ways = at(following, np.flatnonzero(~ended)), ways[moves.row[~ended]]
    return Replies(counts[1], counts[0], counts[-1], positions)


def _answered(rules: Rules, answers: Answers, state: RulesState) -> tuple[RulesState, Array, Array]:
    """(positions after the player's moves, their rewards [n], [n] bool where the game goes on)."""
    n = len(next(iter(state.values())))
    pieces = [answers(at(state, np.arange(k, min(k + AT_ONCE, n)))) for k in range(0, n, AT_ONCE)]
    action = np.concatenate(pieces)
    if not legal_moves(rules, state)[np.arange(n), action].all():
        raise ValueError(f"{rules.spec.id}: the policy's move is not legal; it does not look at `Rules.legal`")
    following, reward, discount, truncated = rules.move(state, action, np.zeros((n, 0)))
    return following, np.asarray(reward), np.asarray((discount != 0) & ~truncated)
