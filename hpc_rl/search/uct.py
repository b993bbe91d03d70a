"""UCT: a tree search that knows nothing but the rules; what it thinks of a position is one random game from there.

    argmax_a  Q(s, a) + c √(ln ΣN / N(s, a)),   every move once before

(Kocsis & Szepesvári 2006, Bandit Based Monte-Carlo Planning, section 2; c = √2 for results in −1..1). The searches of n
positions go in lock-step (mcts.py), so that their random games are played as one batch; a position's random game comes
from a seed that lies beside it in the tree.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.formulas.counter_hash import mixed, seed_of, uniforms
from hpc_rl.search.levels import at, legal_moves
from hpc_rl.search.mcts import Position, Trees, planted, search
from hpc_rl.search.playouts import played_out
from hpc_rl.search.roots import drawn
from hpc_rl.types import Array, Rules, RulesState

C = 2**0.5

NEVER = 1e9  # the score of a move that was never taken, before its rank among such moves

SEED = "uct_seed"  # the leaf beside those of the game; Rules give back their own


def ucb(q: Array, visits: Array, prior: Array, c: float) -> Array:
    """The score [n, A]; moves that were never taken come in the order of ``prior``."""
    summed = np.maximum(visits.sum(-1, keepdims=True), 1)
    bound = q + c * np.sqrt(np.log(summed) / np.maximum(visits, 1))
    score: Array = np.where(visits > 0, bound, NEVER * (1 + prior))
    return score


def random_result(rules: Rules, state: RulesState, seed: Array) -> Array:
    """What random moves from n open positions come to [n], for who moves there."""
    random = lambda there, u: drawn(legal_moves(rules, there).astype(float), u)  # noqa: E731
    return played_out(state, seed, random, rules.move, rules.move_uniforms)


def uct(rules: Rules, state: RulesState, simulations: int, u: Array, c: float = C) -> Trees:
    """The trees of n open positions after so many simulations each; u [n] are uniforms."""

    def position(state: RulesState, seed: Array, reward: Array, discount: Array) -> Position:
        on = np.flatnonzero(discount != 0)
        value, order = np.zeros(len(reward)), np.zeros((len(reward), rules.spec.actions.sizes[0]))
        legal = legal_moves(rules, at(state, on))
        order[on] = np.where(
            legal, 1 + uniforms(np, mixed(seed[on], 1), legal.shape[1]), 0
        )  # the order of first visits
        value[on] = random_result(rules, at(state, on), mixed(seed[on], 2))
        return Position({**state, SEED: seed}, order, value, reward, discount)

    def model(state: RulesState, action: Array) -> Position:
        seed = mixed(state[SEED], 3 + action)
        following, reward, discount, truncated = rules.move(state, action, uniforms(np, seed, rules.move_uniforms))
        return position(following, seed, reward, np.where(truncated, 0, discount))

    n = len(u)
    trees = planted(position(state, seed_of(u), np.zeros(n), np.ones(n)), simulations + 1)
    search(trees, model, np.full(n, simulations), c, score=ucb)
    return trees
