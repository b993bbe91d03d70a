"""Levels of positions against a recursive negamax of one position, and against public counts.

Mutations seen to fail: the value behind a move not multiplied by its discount; the least of a position's moves in place
of the largest; positions of equal keys not compared; halves put together in another order; values of a solution not in
the order of its keys; a position without a move let through beside others.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.search import levels as searched
from hpc_rl.search.levels import TooManyPositions, at, distinct, levels, move_values, solved
from hpc_rl.types import Rules, RulesState

NO_U = np.zeros((1, 0))


def negamax(rules: Rules, state: RulesState, depth: int) -> dict[int, float]:
    """q of each legal move of one position: r + d max q′, and 0 beyond the depth."""
    assert rules.legal is not None
    values = {}
    for action in np.flatnonzero(rules.legal(state)[0]).tolist():
        after, reward, discount, _ = rules.move(state, np.array([action]), NO_U)
        beyond = max(negamax(rules, after, depth - 1).values()) if discount[0] and depth > 1 else 0.0
        values[action] = float(reward[0] + discount[0] * beyond)
    return values


def positions(rules: Rules, count: int, plies: int, seed: int = 0) -> RulesState:
    """Open positions [count] after up to so many random moves."""
    assert rules.legal is not None
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < count:
        state = rules.begin(NO_U)
        for _ in range(rng.integers(plies + 1)):
            action = rng.choice(np.flatnonzero(rules.legal(state)[0]))
            following, _, discount, _ = rules.move(state, np.array([action]), NO_U)
            if not discount[0]:
                break
            state = following
        rows.append(state)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("rules", "plies", "depth"),
    [
        (tictactoe(np).rules, 8, 1),
        (tictactoe(np).rules, 8, 3),
        (connect_four(np).rules, 30, 3),
        (connect_four(np, rows=4, columns=4, line=3).rules, 9, 4),
    ],
)
def test_moves_are_worth_what_negamax_says(rules: Rules, plies: int, depth: int) -> None:
    state = positions(rules, 12, plies)
    values, found = move_values(rules, state, depth), set()
    for k in range(12):
        twin = negamax(rules, at(state, np.array([k])), depth)
        assert {a: values[k, a] for a in twin} == twin
        assert np.isneginf(np.delete(values[k], list(twin))).all()
        found |= set(twin.values())
    assert {0.0, 1.0} <= found
    assert np.array_equal(
        move_values(rules, state, depth, most=rules.spec.actions.sizes[0] ** depth), values
    )  # in halves


def test_a_small_game_is_solved() -> None:
    """Tic-tac-toe has 4 520 positions in which somebody moves."""
    rules = tictactoe(np).rules
    solution = solved(rules)
    assert len(solution.key) == 4520
    assert solution.move_values(rules.begin(NO_U)).tolist() == [[0.0] * 9]
    state = positions(rules, 60, 8, seed=1)
    assert np.array_equal(solution.move_values(state), move_values(rules, state, 9))
    assert (solution.move_values(state).max(1) == -1).any()


def test_levels_hold_each_position_once() -> None:
    """The On-Line Encyclopedia of Integer Sequences, A212693: positions of Connect Four after so many moves."""
    rules = connect_four(np).rules
    found = levels(rules, rules.begin(NO_U), 7)
    assert [len(level.state["mine"]) for level in found] == [1, 7, 49, 238, 1120, 4263, 16_422]


def test_what_is_too_large_is_said() -> None:
    rules = connect_four(np).rules
    with pytest.raises(TooManyPositions, match="more than 5,000 moves to look at"):
        move_values(rules, rules.begin(NO_U), 8, most=5000)
    with pytest.raises(TooManyPositions):
        solved(rules, most=5000)


def test_a_position_without_a_move_is_named() -> None:
    rules = tictactoe(np).rules
    stuck = dataclasses.replace(rules, legal=lambda state: (state["mine"] != 1)[:, None] & (rules.legal or len)(state))
    with pytest.raises(ValueError, match="toy/tictactoe: a position has no legal move and is no end"):
        move_values(stuck, {"mine": np.array([0, 1]), "theirs": np.array([0, 0])}, 1)


def test_equal_keys_of_other_positions_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"mine": np.array([1, 2, 1]), "cells": np.array([[0, 1], [0, 1], [0, 1]], np.int8)}
    once, place = distinct(state)
    assert sorted(once["mine"].tolist()) == [1, 2] and np.array_equal(once["mine"][place], state["mine"])
    monkeypatch.setattr(searched, "keys", lambda state: np.zeros(3, np.uint64))
    with pytest.raises(ValueError, match="two positions have one key"):
        distinct(state)
