"""Games played on from positions to their ends, as one batch: what a search or a player thinks of a position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpc_rl.formulas.counter_hash import mixed, uniforms
from hpc_rl.search.mcts import Move
from hpc_rl.types import Array, RulesState

Choice = Callable[[RulesState, Array], Array]
"""(state {name: [n, …]}, uniforms [n]) -> the moves [n] that are made there."""


def played_out(state: RulesState, seed: Array, choice: Choice, move: Move, move_uniforms: int = 0) -> Array:
    """What the moves of ``choice`` from n open positions come to [n], for who moves there; seeds are int64 [n]."""
    n = len(seed)
    result, sign, rows, ply = np.zeros(n), np.ones(n), np.arange(n), 0
    while len(rows):
        u = uniforms(np, mixed(seed[rows], ply), 1 + move_uniforms)
        state, reward, discount, truncated = move(state, choice(state, u[:, 0]), u[:, 1:])
        result[rows] += sign[rows] * reward
        sign[rows] *= discount
        on = np.flatnonzero((discount != 0) & ~truncated)
        state, rows, ply = {name: x[on] for name, x in state.items()}, rows[on], ply + 1
    return result
