"""The sum tree against sums over its leaves, and its draws against a walk along them.

Mutations seen to fail: a node that is not renewed; nodes by differences; the first of two values of a leaf kept; a
smallest leaf of 0; ``searchsorted`` from the left; a target beyond the children of its node; a single column added up.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.replay import sum_tree
from hpc_rl.replay.sum_tree import SumTree, tree_bytes
from hpc_rl.types import Array

SIZES = [1, 5, 16, 17, 300, 8192, 8193, 140_001]


@pytest.fixture(autouse=True)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several levels without many leaves."""
    monkeypatch.setattr(sum_tree, "TOP", 1024)


def changed(size: int, rounds: int = 30, seed: int = 0) -> SumTree:
    draw, tree = np.random.default_rng([seed, size]), SumTree(size)
    for _ in range(rounds):
        n = int(draw.integers(1, 50))
        tree.set(draw.integers(0, size, n), draw.random(n) ** 6 * (draw.random(n) < 0.8))
        if draw.random() < 0.5:
            tree.renew()
    return tree


def twin(leaves: Array, uniform: float) -> int:
    """The leaf on which a walk along all of them has passed this share of their sum."""
    target, passed = uniform * leaves.sum(), 0.0
    for k, leaf in enumerate(leaves.tolist()):
        passed += leaf
        if passed > target:
            return k
    return int(np.flatnonzero(leaves).max())


@pytest.mark.parametrize("size", SIZES)
def test_nodes_are_those_of_the_leaves_to_the_bit(size: int) -> None:
    tree, again = changed(size), SumTree(size)
    for leaf in range(0, min(size, 40), 7):
        tree.renew()
        tree.set(np.array([leaf]), np.random.default_rng(leaf).random(1))  # alone
    again.load(tree.leaves)
    tree.renew()
    again.renew()
    for one, other in zip([*tree.sums, *tree.least], [*again.sums, *again.least], strict=True):
        assert one.tobytes() == other.tobytes()
    positive = tree.leaves[tree.leaves > 0]
    assert tree.total == pytest.approx(tree.leaves.sum(), rel=1e-12)
    assert tree.smallest == (positive.min() if len(positive) else np.inf)


def test_a_leaf_that_is_named_twice_has_the_last_value() -> None:
    tree = SumTree(40)
    tree.set(np.array([3, 20, 3, 20, 3]), np.array([1.0, 7.0, 2.0, 0.0, 5.0]))
    assert tree.leaves[3] == 5 and tree.leaves[20] == 0 and tree.total == 5 and tree.smallest == 5


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_is_where_a_walk_ends(size: int) -> None:
    tree = changed(size)
    tree.set(np.array([0]), np.array([0.25]))
    uniform = np.random.default_rng(1).random(200 if size < 10_000 else 20)
    assert tree.draw(uniform).tolist() == [twin(tree.leaves, u) for u in uniform.tolist()]


@pytest.mark.parametrize("size", SIZES)
def test_no_rounding_draws_a_leaf_of_0(size: int) -> None:
    tree = changed(size)
    tree.set(np.array([size - 1, 0]), np.array([0.0, 1e-300 if size > 1 else 0.5]))
    edges = (tree.leaves.cumsum() / tree.leaves.sum())[:5000]
    uniform = np.concatenate([[0.0, 1 - 2**-53], *(np.nextafter(edges, way) for way in (0, 1)), edges])
    places = tree.draw(uniform[(uniform >= 0) & (uniform < 1)])
    assert (tree.leaves[places] > 0).all()
    assert tree.draw(np.zeros(1))[0] == 0
    with pytest.raises(ValueError, match="no leaf of the sum tree is above 0"):
        SumTree(size).draw(uniform[:1])


def test_a_draw_at_an_edge_belongs_to_the_leaf_behind_it() -> None:
    tree = SumTree(64)
    tree.set(np.arange(0, 64, 16), np.ones(4))
    assert tree.draw(np.array([0.0, 0.25, 0.5, 0.75])).tolist() == [0, 16, 32, 48]


def test_a_sum_that_was_rounded_up_does_not_lead_beyond_its_family() -> None:
    for seed in range(100):
        tree = SumTree(32)
        tree.set(np.arange(16), np.random.default_rng(seed).random(16))
        assert tree.draw(np.array([1 - 2**-53]))[0] == 15


def test_leaves_are_drawn_by_their_share() -> None:
    tree, n = changed(300, 200), 100_000
    counts = np.bincount(tree.draw(np.random.default_rng(2).random(n)), minlength=300)
    expected = n * tree.leaves / tree.total
    likely = expected > 5
    chi = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi < likely.sum() + 5 * (2 * likely.sum()) ** 0.5


@pytest.mark.parametrize("size", SIZES)
def test_its_memory_is_known(size: int) -> None:
    tree = SumTree(size)
    assert tree_bytes(size) == sum(x.nbytes for x in [*tree.sums, *tree.least])
