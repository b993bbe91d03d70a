"""The search against a recursive one of a single tree, to the last visit, under a model that is a seeded hash.

Mutations seen to fail: what came of a simulation not multiplied by the discount on its way up; √ΣN without its floor;
the model's prior at a root that has noise; visits of a kept tree forgotten; a child's number not changed with its
place; a move that is not legal taken; an episode that is over asked about; visits counted by nodes; another α.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.search.mcts import C_BASE, NONE, Model, Position, Trees, advance, find, planted, replant, search
from hpc_rl.search.roots import dirichlet, drawn, noisy, sharpened
from hpc_rl.types import Array, Rules, RulesState

ACTIONS = 5
MASK = (1 << 64) - 1


def mixed(x: Array, salt: int) -> Array:
    """SplitMix64's finaliser (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) & MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(x: Array, salt: int) -> Array:
    return (mixed(x, salt) >> np.uint64(11)).astype(np.float64) / 2**53


def position(state: Array, reward: Array, discount: Array) -> Position:
    prior = np.stack([uniform(state, 10 + a) for a in range(ACTIONS)], 1)
    prior *= np.stack([uniform(state, 30 + a) < 0.8 for a in range(ACTIONS)], 1)
    prior[:, 0] += prior.sum(1) == 0
    prior /= prior.sum(1, keepdims=True)
    return Position({"hash": state}, prior, 2 * uniform(state, 50) - 1, reward, discount)


def hashed(state: RulesState, action: Array) -> Position:
    """A model in which one move of eight ends the episode, two of three let the other player move."""
    asked.extend(state["hash"].tolist())
    onto = mixed(state["hash"], 0) + action.astype(np.uint64)
    kind = uniform(onto, 60)
    discount = np.where(kind < 1 / 8, 0.0, np.where(kind < 0.7, -1.0, 0.9))
    return position(onto, np.where(uniform(onto, 61) < 0.3, uniform(onto, 62), 0.0), discount)


asked: list[int] = []


def roots(b: int, seed: int) -> Position:
    state = np.random.default_rng(seed).integers(0, 2**63, b).astype(np.uint64)
    return position(state, np.zeros(b), np.ones(b))


@dataclass
class Node:
    """The twin: one position of one tree."""

    state: int
    prior: list[float]
    value: float
    reward: float
    discount: float
    children: dict[int, Node] = field(default_factory=dict)
    visits: list[int] = field(default_factory=lambda: [0] * ACTIONS)
    total: list[float] = field(default_factory=lambda: [0.0] * ACTIONS)


def node_of(x: Position, k: int = 0) -> Node:
    return Node(int(x.state["hash"][k]), x.prior[k].tolist(), float(x.value[k]), float(x.reward[k]),
                float(x.discount[k]))  # fmt: skip


def simulate(node: Node, c_puct: float, first_play: float) -> float:
    """What comes of one simulation from here, for who moves here."""
    summed = sum(node.visits)
    c = c_puct + math.log((1 + summed + C_BASE) / C_BASE)
    scores = [
        -math.inf if p == 0 else
        (w / n if n else first_play) + c * p * math.sqrt(max(1, summed)) / (1 + n)
        for p, n, w in zip(node.prior, node.visits, node.total, strict=True)
    ]  # fmt: skip
    action = scores.index(max(scores))
    if action not in node.children:
        child = node_of(hashed({"hash": np.array([node.state], np.uint64)}, np.array([action])))
        node.children[action] = child
        beyond = child.value if child.discount else 0.0
    else:
        child = node.children[action]
        beyond = simulate(child, c_puct, first_play) if child.discount else 0.0
    came = child.reward + child.discount * beyond
    node.visits[action] += 1
    node.total[action] += came
    return came


@pytest.mark.parametrize("first_play", [0.0, -0.5])
@pytest.mark.parametrize("simulations", [1, 2, 60])
def test_equals_the_recursive_search(simulations: int, first_play: float) -> None:
    b, root = 7, roots(7, simulations)
    trees = planted(root, simulations + 1)
    search(trees, hashed, np.full(b, simulations), 1.25, first_play=first_play)
    for k in range(b):
        twin = node_of(root, k)
        for _ in range(simulations):
            simulate(twin, 1.25, first_play)
        check(trees, k, 0, twin)
        assert trees.root_value()[k] == pytest.approx(sum(twin.total) / simulations)


def check(trees: Trees, k: int, node: int, twin: Node) -> None:
    """The whole tree below a node, to the last visit."""

    assert trees.state["hash"][k, node] == np.uint64(twin.state)
    assert trees.visits[k, node].tolist() == twin.visits and trees.total[k, node].tolist() == twin.total
    for action, child in enumerate(trees.child[k, node].tolist()):
        assert (child != NONE) == (action in twin.children)
        if child != NONE:
            check(trees, k, child, twin.children[action])


def test_what_follows_a_move_is_kept() -> None:
    """Four moves of a game, with noise at every root: visits of the kept tree count towards those that are wanted."""
    b, n, root = 6, 40, roots(6, 3)
    trees, twins = planted(root, n + 1), [node_of(root, k) for k in range(b)]
    rng, kept = np.random.default_rng(0), 0
    for _ in range(4):
        prior = noisy(trees.prior[:, 0], rng.random((b, ACTIONS)), 0.5, 0.25)
        already = trees.root_visits
        kept += int(already.sum())
        search(trees, hashed, np.full(b, n), 1.25, root_prior=prior)
        assert (trees.root_visits == n).all()
        for k, twin in enumerate(twins):
            own, twin.prior = twin.prior, prior[k].tolist()
            for _ in range(n - int(already[k])):
                simulate(twin, 1.25, 0.0)
            check(trees, k, 0, twin)
            twin.prior = own
        action = trees.visits[:, 0].argmax(1)
        onto = [twin.children.get(a) for twin, a in zip(twins, action.tolist(), strict=True)]
        root = find(trees, {"hash": np.array([node.state if node else 1 for node in onto], np.uint64)})
        known = (root != NONE) & (trees.discount[np.arange(b), root] != 0)
        advance(trees, np.where(known, root, NONE))
        fresh = np.flatnonzero(~known)
        anew = roots(len(fresh), int(rng.integers(1000))) if len(fresh) else None
        if anew is not None:
            replant(trees, fresh, anew)
        for k in range(b):
            child = twins[k].children[int(action[k])]
            assert known[k] == (child.discount != 0)
            twins[k] = child if known[k] or anew is None else node_of(anew, fresh.tolist().index(k))
            check(trees, k, 0, twins[k])
    assert kept > 50


def test_only_open_positions_are_asked_about_and_each_once() -> None:
    asked.clear()
    root = roots(20, 8)
    trees = planted(root, 101)
    search(trees, hashed, np.full(20, 100), 1.25)
    ended = {
        int(x)
        for k in range(20)
        for x in trees.state["hash"][k, : trees.size[k]][trees.discount[k, : trees.size[k]] == 0]
    }
    assert ended and not ended & set(asked)
    assert len(asked) == int((trees.size - 1).sum()) < 2000  # revisits of ends ask nothing


def test_trees_that_have_enough_ask_no_more() -> None:
    root = roots(4, 9)
    trees = planted(root, 33)
    search(trees, hashed, np.array([0, 1, 32, 5]), 1.25)
    assert trees.root_visits.tolist() == [0, 1, 32, 5]
    assert np.isnan(trees.q()[0]).all() and trees.root_value()[0] == root.value[0]


# ---- games ----------------------------------------------------------------------------------------------------------


def blind(rules: Rules) -> tuple[Callable[[RulesState], Position], Model]:
    """A model without an opinion: even priors, values 0."""
    assert rules.legal is not None
    legal = rules.legal

    def view(state: RulesState, reward: Array, discount: Array) -> Position:
        moves = legal(state)
        prior = moves / np.maximum(moves.sum(1, keepdims=True), 1)
        return Position(state, prior, np.zeros(len(reward)), reward, discount)

    def model(state: RulesState, action: Array) -> Position:
        following, reward, discount, _ = rules.move(state, action, np.zeros((len(action), 0)))
        return view(following, reward, discount)

    def root(state: RulesState) -> Position:
        n = len(next(iter(state.values())))
        return view(state, np.zeros(n), np.ones(n))

    return root, model


def worth(rules: Rules, state: RulesState, known: dict[tuple[int, ...], float]) -> dict[int, float]:
    """What each legal move of one position leads to under perfect play."""
    assert rules.legal is not None
    actions = np.flatnonzero(rules.legal(state)[0])
    n = len(actions)
    following, reward, discount, _ = rules.move({k: x.repeat(n) for k, x in state.items()}, actions, np.zeros((n, 0)))
    values = {}
    for k, action in enumerate(actions.tolist()):
        after = {name: x[k : k + 1] for name, x in following.items()}
        beyond = exact(rules, after, known) if discount[k] else 0.0
        values[action] = float(reward[k] + discount[k] * beyond)
    return values


def exact(rules: Rules, state: RulesState, known: dict[tuple[int, ...], float]) -> float:
    key = tuple(int(x[0]) for x in state.values())
    if key not in known:
        known[key] = max(worth(rules, state, known).values())
    return known[key]


def after_random_moves(rules: Rules, rng: np.random.Generator, plies: int) -> RulesState | None:
    """A position after so many moves; None where the game was over before."""
    assert rules.legal is not None
    state = rules.begin(np.zeros((1, 0)))
    for _ in range(plies):
        action = rng.choice(np.flatnonzero(rules.legal(state)[0]))
        state, _, discount, _ = rules.move(state, np.array([action]), np.zeros((1, 0)))
        if not discount[0]:
            return None
    return state


@pytest.mark.parametrize(
    ("rules", "plies"), [(tictactoe(np).rules, 4), (connect_four(np, rows=4, columns=5).rules, 13)]
)
def test_forced_wins_are_found_and_forced_losses_avoided(rules: Rules, plies: int) -> None:
    """Of random positions those in which moves differ; a blind search of 3000 simulations sees their ends."""
    rng, positions, values = np.random.default_rng(0), [], []
    root, model = blind(rules)
    known: dict[tuple[int, ...], float] = {}
    while len(positions) < 24:
        state = after_random_moves(rules, rng, plies)
        worths = worth(rules, state, known) if state else {}
        if state is not None and len(set(worths.values())) > 1:
            positions.append(state)
            values.append(worths)
    states = {name: np.concatenate([state[name] for state in positions]) for name in positions[0]}
    trees = planted(root(states), 3001)
    search(trees, model, np.full(len(positions), 3000), 3.0)
    best = np.array([max(worths.values()) for worths in values])
    assert [w[a] for w, a in zip(values, trees.visits[:, 0].argmax(1).tolist(), strict=True)] == best.tolist()
    assert min((best == 1).sum(), (best == 0).sum()) > 3


# ---- roots ----------------------------------------------------------------------------------------------------------


def test_noise_is_dirichlet_over_legal_moves() -> None:
    rng, alpha, n = np.random.default_rng(0), 0.3, 40_000
    legal = np.array([True, False, True, True, False])
    draws = dirichlet(rng.random((n, 5)), alpha, np.tile(legal, (n, 1)))
    assert (draws[:, ~legal] == 0).all() and np.allclose(draws.sum(1), 1)
    k = int(legal.sum())
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    assert np.allclose(draws[:, legal].mean(0), 1 / k, atol=0.01)
    assert np.allclose(draws[:, legal].var(0), variance, rtol=0.03)
    tiny = dirichlet(np.full((1, 5), 1e-300), 0.001, legal[None])
    assert np.allclose(tiny, legal / k)
    prior = np.array([[0.5, 0.0, 0.5, 0.0, 0.0]])
    mixture = noisy(prior, rng.random((1, 5)), alpha, 0.25)
    assert mixture.sum() == pytest.approx(1) and (mixture[0, [1, 3, 4]] == 0).all() and (mixture >= 0.75 * prior).all()


def test_moves_are_drawn_by_their_visits() -> None:
    visits = np.array([[1, 2, 0, 5], [4, 0, 4, 0], [900, 100, 0, 0]])
    even = sharpened(visits, np.ones(3))
    assert np.allclose(even, visits / visits.sum(1, keepdims=True))
    assert np.allclose(sharpened(visits, np.full(3, 0.5))[0], np.array([1, 4, 0, 25]) / 30)
    assert sharpened(visits, np.zeros(3)).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert np.isfinite(sharpened(visits, np.full(3, 1e-3))).all()
    rng = np.random.default_rng(1)
    counts = np.bincount(drawn(np.tile(even[0], (80_000, 1)), rng.random(80_000)), minlength=4)
    assert counts[2] == 0 and np.allclose(counts / 80_000, even[0], atol=0.01)
    assert drawn(even[:1], np.array([np.nextafter(1.0, 0)])).tolist() == [3]
