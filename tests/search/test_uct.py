"""UCT against a recursive search of one tree with the same random games, and against perfect play.

Mutations seen to fail: ln N of the move in place of ΣN; the result of a random game in the view of the other player; a
move taken twice before another was once; a game that depends on its neighbours' seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.formulas.counter_hash import mixed, seed_of, uniforms
from hpc_rl.search.levels import at, move_values
from hpc_rl.search.uct import C, uct
from hpc_rl.types import Array, Rules, RulesState
from tests.search.test_levels import NO_U, positions


@dataclass
class Node:
    state: RulesState
    seed: Array
    reward: float = 0.0
    discount: float = 1.0
    visits: dict[int, int] = field(default_factory=dict)
    total: dict[int, float] = field(default_factory=dict)
    children: dict[int, Node] = field(default_factory=dict)


def played_out(rules: Rules, state: RulesState, seed: Array) -> float:
    """A random game from here, in the view of who moves here."""
    assert rules.legal is not None
    sign, result, discount, ply = 1.0, 0.0, -1.0, 0
    while discount:
        moves = np.flatnonzero(rules.legal(state)[0])
        u = uniforms(np, mixed(seed, ply), 1)[0, 0]
        state, reward, after, _ = rules.move(state, moves[[int(u * len(moves))]], NO_U)
        discount, ply = float(after[0]), ply + 1
        result += sign * float(reward[0])
        sign = -sign
    return result


def simulate(rules: Rules, node: Node) -> float:
    assert rules.legal is not None
    legal = np.flatnonzero(rules.legal(node.state)[0]).tolist()
    order = uniforms(np, mixed(node.seed, 1), rules.spec.actions.sizes[0])[0]
    fresh = [a for a in legal if a not in node.visits]
    summed = sum(node.visits.values())
    if fresh:
        action = max(fresh, key=lambda a: float(order[a]))
    else:

        def bound(a: int) -> float:
            return node.total[a] / node.visits[a] + C * math.sqrt(math.log(summed) / node.visits[a])

        action = max(legal, key=bound)
    if action not in node.children:
        state, reward, discount, _ = rules.move(node.state, np.array([action]), NO_U)
        child = Node(state, mixed(node.seed, 3 + action), float(reward[0]), float(discount[0]))
        node.children[action] = child
        beyond = played_out(rules, state, mixed(child.seed, 2)) if child.discount else 0.0
    else:
        child = node.children[action]
        beyond = simulate(rules, child) if child.discount else 0.0
    came = child.reward + child.discount * beyond
    node.visits[action] = node.visits.get(action, 0) + 1
    node.total[action] = node.total.get(action, 0.0) + came
    return came


@pytest.mark.parametrize("rules", [tictactoe(np).rules, connect_four(np, rows=4, columns=4).rules])
def test_equals_the_recursive_search(rules: Rules) -> None:
    state, u = positions(rules, 4, 4), np.random.default_rng(1).random(4)
    trees = uct(rules, state, 80, u)
    for k in range(4):
        twin = Node(at(state, np.array([k])), seed_of(u[[k]]))
        for _ in range(80):
            simulate(rules, twin)
        actions = range(rules.spec.actions.sizes[0])
        assert trees.visits[k, 0].tolist() == [twin.visits.get(a, 0) for a in actions]
        assert trees.total[k, 0].tolist() == [twin.total.get(a, 0.0) for a in actions]


def test_a_search_does_not_depend_on_its_neighbours() -> None:
    rules = connect_four(np).rules
    state, u = positions(rules, 5, 10), np.random.default_rng(2).random(5)
    whole, alone = uct(rules, state, 30, u), uct(rules, at(state, np.array([3])), 30, u[[3]])
    assert np.array_equal(whole.visits[3, 0], alone.visits[0, 0])


def test_forced_wins_are_found_and_forced_losses_avoided() -> None:
    """Positions of Connect Four in which three moves ahead only some moves are best."""
    rules = connect_four(np).rules
    state = positions(rules, 150, 24, seed=3)
    values = move_values(rules, state, 3)
    differ = np.flatnonzero((values.max(1) != 0) | (np.where(np.isneginf(values), 0, values).min(1) < 0))[:30]
    state, values = at(state, differ), values[differ]
    chosen = uct(rules, state, 1500, np.random.default_rng(4).random(len(differ))).visits[:, 0].argmax(1)
    best = values.max(1)
    assert (best == 1).sum() > 5 and (best == 0).sum() > 5
    assert (values[np.arange(len(differ)), chosen] == best).all()
