"""Sequential halving at the root against a slow one of a single tree, as the paper describes it.

Mutations seen to fail: halves by visits alone; v_mix without its value, or over moves that are not legal; σ without
c_visit; the best of all moves, not of those taken most often; a phase too few; noise where draws are all alike.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpc_rl.search.gumbel import C_SCALE, C_VISIT, halving, improved_policy, visits_in_turn
from hpc_rl.search.mcts import planted, search
from hpc_rl.types import Array
from tests.search.test_mcts import ACTIONS, Node, hashed, node_of, roots, simulate


def take(node: Node, action: int) -> None:
    """One simulation whose first move is ``action``."""
    own = node.prior
    node.prior = [float(a == action) for a in range(ACTIONS)]
    simulate(node, 1.25, 0.0)
    node.prior = own


def completed(node: Node) -> list[float]:
    """σ(Q) of each move."""
    taken = [a for a in range(ACTIONS) if node.visits[a]]
    v_mix = node.value
    if taken:
        mass = sum(node.prior[a] for a in taken)
        mean = sum(node.prior[a] * node.total[a] / node.visits[a] for a in taken) / mass
        v_mix = (node.value + sum(node.visits) * mean) / (1 + sum(node.visits))
    q = [node.total[a] / node.visits[a] if node.visits[a] else v_mix for a in range(ACTIONS)]
    return [(C_VISIT + max(node.visits)) * C_SCALE * (x + 1) / 2 for x in q]


def halved(node: Node, gumbel: list[float], simulations: int, considered: int) -> tuple[int, list[float]]:
    """The move to make, and the improved policy."""
    legal = [a for a in range(ACTIONS) if node.prior[a] > 0]

    def score(a: int) -> float:
        return gumbel[a] + math.log(node.prior[a]) + completed(node)[a]

    left = sorted(legal, key=lambda a: gumbel[a] + math.log(node.prior[a]), reverse=True)[:considered]
    m, spent = len(left), 0
    while spent < simulations:
        phases = math.ceil(math.log2(m)) if m > 1 else 1
        for _ in range(max(1, simulations // (phases * len(left)))):
            for a in sorted(left, key=score, reverse=True):
                if spent < simulations:
                    take(node, a)
                    spent += 1
        left = sorted(left, key=score, reverse=True)[: max(2, len(left) // 2)]
    most = [a for a in legal if node.visits[a] == max(node.visits)]
    sigma = completed(node)
    power = [node.prior[a] * math.exp(sigma[a]) for a in range(ACTIONS)]
    return max(most, key=score), [x / sum(power) for x in power]


@pytest.mark.parametrize(("simulations", "considered"), [(8, 4), (16, 4), (32, 2), (7, 3), (15, 5), (5, 1)])
def test_equals_halving_of_one_tree(simulations: int, considered: int) -> None:
    b, root = 8, roots(8, simulations + considered)
    trees, u = planted(root, simulations + 1), np.random.default_rng(1).random((b, ACTIONS))
    plan = halving(trees.prior[:, 0], u, np.full(b, simulations), considered)
    search(trees, hashed, np.full(b, simulations), 1.25, root_move=plan.move)
    best, policy = plan.best(trees), improved_policy(trees.prior[:, 0], trees)
    for k in range(b):
        twin = node_of(root, k)
        move, improved = halved(twin, plan.gumbel[k].tolist(), simulations, considered)
        assert trees.visits[k, 0].tolist() == twin.visits and trees.total[k, 0].tolist() == pytest.approx(twin.total)
        assert best[k] == move and policy[k].tolist() == pytest.approx(improved)


def test_visits_come_in_phases() -> None:
    assert visits_in_turn(4, 8) == (0, 0, 0, 0, 1, 1, 2, 2)
    assert visits_in_turn(1, 3) == (0, 1, 2)
    assert len(visits_in_turn(16, 5)) == 5


def test_draws_that_are_all_alike_are_none() -> None:
    prior: Array = np.array([[0.5, 0.3, 0.2, 0.0, 0.0]])
    scores = halving(prior, np.full((1, ACTIONS), 0.5), np.array([8]), 4).gumbel
    assert np.ptp(scores) == 0


def test_the_improved_policy_is_better_than_the_priors() -> None:
    """Under a model whose values are exact, as the paper's theorem says, with two simulations only."""
    root = roots(200, 4)
    trees = planted(root, 3)
    plan = halving(trees.prior[:, 0], np.random.default_rng(3).random((200, ACTIONS)), np.full(200, 2), 2)
    search(trees, hashed, np.full(200, 2), 1.25, root_move=plan.move)
    q = np.where(trees.visits[:, 0] > 0, trees.total[:, 0] / np.maximum(trees.visits[:, 0], 1), 0.0)
    taken = trees.visits[:, 0] > 0
    before, after = (trees.prior[:, 0], improved_policy(trees.prior[:, 0], trees))
    gain = []
    for here, p, improved, values in zip(taken, before, after, q, strict=True):
        old, new = p[here] / p[here].sum(), improved[here] / improved[here].sum()
        gain.append((new - old) @ values[here])
    assert min(gain) > -1e-9 and max(gain) > 0.1
