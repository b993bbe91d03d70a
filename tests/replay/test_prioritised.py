"""Prioritised draws of a ring against the probabilities of equation 1, and what happens to priorities on their way.

Mutations seen to fail: α forgotten, or taken of 1/p; chances relative to the
batch; the largest first priority so far forgotten, in the run or in the state; a key whose slot was overwritten that
sets the priority of the item there; NaN, negative or infinite priorities taken; items not ended with their rows;
priorities not rolled with their rows, or of one column only, where rings are dealt out again; keys of the first kind of
items handed on in place of the prioritised one's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpc_rl.experience import Experience, Items
from hpc_rl.fragments import trajectory
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.rate_limiter import RateLimiter
from hpc_rl.replay.ring import Ring, ring_bytes
from hpc_rl.replay.room import Unreplayable, check_room
from hpc_rl.replay.saving import Saver
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.training import Training, _update
from hpc_rl.samplers.base import Timings
from hpc_rl.types import Array, Tree, UpdateResult
from tests.replay.columns import Column, Folder, columns_of, fragment, saved, schema_of, spec_of
from tests.replay.test_dealing import of_columns

WIDTH, UNROLL, KEPT, ALPHA = 3, 4, 40, 0.6
ITEMS = Items("items", 64, 3, alpha=ALPHA)
SPEC = spec_of(4)


def ring_of(*items: Items, annotate: Any = None, saver: Saver | None = None) -> Ring:
    experience = Experience(UNROLL, items or (ITEMS,), capacity=KEPT * WIDTH)
    return Ring(schema_of(SPEC), SPEC, range(10, 10 + WIDTH), experience, 1, 7, annotate, saver)


def filled(ring: Ring, columns: list[Column], fragments: int) -> Ring:
    for _ in range(fragments):
        ring.insert(fragment(columns, UNROLL))
        ring.release()
    return ring


def keys_of(ring: Ring) -> Array:
    """Keys of all complete items."""
    rows = np.arange(ring.low, ring.rows.end)
    row, column = np.nonzero(ring.kinds[0].lengths[rows % ring.rows.slots])
    return (row + ring.low) * WIDTH + column


def priorities_of(ring: Ring, keys: Array) -> Array:
    kind = ring.kinds[0]
    assert kind.priorities is not None
    return kind.priorities.of(ring.rows.at(*np.divmod(keys, WIDTH)))


def sampled(ring: Ring, update: int) -> tuple[Tree, Array]:
    ((tree,), keys) = ring.sample(update)["items"]
    assert keys is not None
    return tree, keys


def test_items_are_drawn_by_their_priorities_and_weighted_by_the_least() -> None:
    ring = filled(ring_of(), columns_of(SPEC, WIDTH), 20)
    keys = keys_of(ring)
    p = np.random.default_rng(0).exponential(size=len(keys)) + 0.02
    ring.reprioritize(keys, p.astype(np.float32))
    share = p**ALPHA / (p**ALPHA).sum()
    counts: Counter[int] = Counter()
    for update in range(200):
        tree, drawn = sampled(ring, update)
        counts.update(drawn.tolist())
        own = {int(key): k for k, key in enumerate(keys)}
        expected = [share[own[int(key)]] / share.min() for key in drawn]
        assert np.allclose(trajectory([tree], SPEC).chance, expected, rtol=1e-5)
    expected = 200 * 64 * share
    chi = ((np.array([counts[int(key)] for key in keys]) - expected) ** 2 / expected).sum()
    assert set(counts) <= set(keys.tolist()) and chi < len(keys) + 5 * (2 * len(keys)) ** 0.5
    kind = ring.kinds[0]
    assert ring.mass(kind) == pytest.approx((p**ALPHA).sum(), rel=1e-6)
    assert ring.smallest(kind) == pytest.approx((p**ALPHA).min(), rel=1e-6)


def test_alpha_0_draws_uniformly_with_the_same_bits() -> None:
    rings = [filled(ring_of(replace(ITEMS, alpha=0.0)), columns_of(SPEC, WIDTH), 20) for _ in range(2)]
    rings[0].reprioritize(keys_of(rings[0])[:5], np.arange(5, dtype=np.float32))
    for update in range(3):
        (tree, keys), (_, other) = (sampled(ring, update) for ring in rings)
        assert np.array_equal(keys, other) and "chance" not in tree
        assert (trajectory([tree], SPEC).chance == 1).all()


def test_new_items_have_the_largest_priority_so_far() -> None:
    columns, ring = columns_of(SPEC, WIDTH), ring_of()
    filled(ring, columns, 3)
    keys = keys_of(ring)
    assert (priorities_of(ring, keys) == 1).all(), "1 at the beginning"
    for largest in (9.0, 4.0):  # the largest so far is not the largest now
        ring.reprioritize(keys, np.full(len(keys), largest, np.float32))
        filled(ring, columns, 1)
        new = np.setdiff1d(keys_of(ring), keys)
        assert len(new) and np.allclose(priorities_of(ring, new), 9.0)


def test_annotate_gives_first_priorities() -> None:
    def annotate(rows: Tree) -> dict[str, Array]:
        return {"priority": rows["action"][0] % 10_000 + 0.5}

    columns = columns_of(SPEC, WIDTH)
    ring = filled(ring_of(annotate=annotate), columns, 15)
    keys = keys_of(ring)
    actions = ring.rows.flat["action"][ring.rows.at(*np.divmod(keys, WIDTH))] % 10_000
    assert np.allclose(priorities_of(ring, keys), actions + 0.5)
    assert "extras/priority" not in sampled(ring, 0)[0]


def test_a_key_whose_slot_was_overwritten_is_dropped_and_counted() -> None:
    columns = columns_of(SPEC, WIDTH)
    ring = filled(ring_of(), columns, 12)
    old = keys_of(ring)
    filled(ring, columns, 3)
    gone = old < ring.low * WIDTH
    before = priorities_of(ring, keys_of(ring))
    assert gone.any() and not gone.all()
    ring.reprioritize(old, np.where(gone, 100.0, 3.0).astype(np.float32))
    after = priorities_of(ring, keys_of(ring))
    named = np.isin(keys_of(ring), old)
    assert np.allclose(after[named], 3.0) and np.array_equal(after[~named], before[~named])
    assert ring.figures()["replay/dropped"] == gone.sum()
    filled(ring, columns, 13)  # every slot holds another row now
    before = priorities_of(ring, keys_of(ring))
    ring.reprioritize(old, np.full(len(old), 100.0, np.float32))
    assert np.array_equal(priorities_of(ring, keys_of(ring)), before)
    assert ring.figures()["replay/dropped"] == gone.sum() + len(old)


def test_what_is_no_priority_is_refused_counted_and_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    ring = filled(ring_of(), columns_of(SPEC, WIDTH), 8)
    keys = keys_of(ring)[:6]
    ring.reprioritize(keys, np.full(6, 2.0, np.float32))
    for _ in range(2):
        ring.reprioritize(keys, np.array([np.nan, -1.0, np.inf, 3.0, 0.0, 2.0]))
    assert np.allclose(priorities_of(ring, keys), [2, 2, 2, 3, 1e-6, 2])
    assert ring.figures()["replay/rejected"] == 6
    out = capsys.readouterr().out
    assert out.count("warning") == 1 and "a priority of nan of the items is refused" in out
    with pytest.raises(ValueError, match=r"priorities of shape \(5,\) do not belong to keys of shape \(6,\)"):
        ring.reprioritize(keys, np.ones(5))


def test_refused_first_priorities_are_the_largest_so_far() -> None:
    ring = filled(ring_of(annotate=lambda rows: {"priority": rows["reward"][0] * np.nan}), columns_of(SPEC, WIDTH), 5)
    assert (priorities_of(ring, keys_of(ring)) == 1).all()
    assert ring.figures()["replay/rejected"] >= len(keys_of(ring))


def test_every_item_in_the_tree_is_complete_and_every_complete_one_is_in_it() -> None:
    columns, ring = columns_of(SPEC, WIDTH), ring_of()
    for _ in range(30):
        filled(ring, columns, 1)
        kind = ring.kinds[0]
        assert kind.priorities is not None
        assert np.array_equal(kind.priorities.tree.leaves > 0, kind.lengths.reshape(-1) > 0)
        if kind.count:
            keys = sampled(ring, 0)[1]
            ring.reprioritize(keys, np.random.default_rng(0).exponential(size=len(keys)))


@pytest.mark.parametrize("fragments", [0, 3, 25])
def test_a_resumed_ring_draws_the_same_bits(fragments: int) -> None:
    columns = columns_of(SPEC, WIDTH)
    folder, draw = Folder(), np.random.default_rng(0)
    uninterrupted = filled(ring_of(saver=folder.saver()), columns, fragments)
    if fragments > 1:
        uninterrupted.reprioritize(keys_of(uninterrupted), draw.exponential(size=len(keys_of(uninterrupted))))
    resumed = ring_of(saver=folder.saver(1))
    resumed.load(saved([uninterrupted]))
    for update in range(8):
        tree = fragment(columns, UNROLL)
        for ring in (uninterrupted, resumed):
            ring.insert(tree)
            ring.release()
        if uninterrupted.kinds[0].count:
            (one, keys), (other, _) = (sampled(ring, update) for ring in (uninterrupted, resumed))
            for leaf, x in one.items():
                assert x.tobytes() == other[leaf].tobytes(), leaf
            for ring in (uninterrupted, resumed):
                ring.reprioritize(keys, one["reward"][0] ** 2)
    trees = [ring.kinds[0].priorities.tree.sums for ring in (uninterrupted, resumed)]  # type: ignore[union-attr]
    assert [x.tobytes() for x in trees[0]] == [x.tobytes() for x in trees[1]]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_priorities_are_dealt_out_with_their_items(before: int, after: int) -> None:
    columns, folder = columns_of(SPEC, 4), Folder()

    def rings(count: int, attempt: int) -> list[Ring]:
        width, experience = 4 // count, Experience(UNROLL, (replace(ITEMS, batch_size=8),), capacity=KEPT * 4)
        spans = [range(10 + k * width, 10 + (k + 1) * width) for k in range(count)]
        return [Ring(schema_of(SPEC), SPEC, span, experience, count, 7, None, folder.saver(attempt)) for span in spans]

    def by_item(rings: list[Ring]) -> dict[tuple[int, int], float]:
        table = {}
        for ring in rings:
            kind = ring.kinds[0]
            assert kind.priorities is not None
            at = np.flatnonzero(kind.lengths)
            p, action = kind.priorities.of(at), ring.rows.flat["action"][at]
            for k, place in enumerate(at.tolist()):
                table[int(ring.rows.column[place % ring.rows.width]), int(action[k])] = float(p[k])
        return table

    old, draw = rings(before, 0), np.random.default_rng(0)
    for number in range(14):
        tree = fragment(columns, UNROLL)
        for ring in old:
            ring.insert(of_columns(tree, ring.columns))
        if number == 12:
            for column in columns[2:]:  # a gap that only some rings have
                column.reset(column.rows[-1].start)
    for ring in old:
        at = np.flatnonzero(ring.kinds[0].lengths)
        slot, column = np.divmod(at, ring.rows.width)
        row = ring.low + (slot - ring.low) % ring.rows.slots
        ring.reprioritize(row * ring.rows.width + column, draw.exponential(size=len(at)) * 5)
    parts, new = saved(old), rings(after, 1)
    for ring in new:
        ring.load(parts)
    assert by_item(new) == by_item(old) and len(by_item(new)) > 50
    largest = {ring.kinds[0].priorities.largest for ring in old}  # type: ignore[union-attr]
    assert {ring.kinds[0].priorities.largest for ring in new} <= largest  # type: ignore[union-attr]


def test_a_learners_priorities_reach_the_items_that_have_them() -> None:
    """Of two kinds of items the second one has priorities; its keys go back with what the learner returned."""
    uniform, own = Items("plain", 8, 1), replace(ITEMS, name="options", batch_size=16)
    ring = filled(ring_of(uniform, own), columns_of(SPEC, WIDTH), 10)
    returned: list[tuple[Array, Array]] = []
    reprioritize = ring.reprioritize

    def record(keys: Array, priorities: Array) -> None:
        returned.append((keys, priorities))
        reprioritize(keys, priorities)

    ring.reprioritize = record  # type: ignore[method-assign]
    learner = SimpleNamespace(group=Alone(), optimizers={}, batches={})

    def update(batches: Any, progress: float) -> UpdateResult:
        learner.batches = batches
        return UpdateResult({}, batches["options"].action[0].float() % 10_000 + 1)

    learner.update = update
    method = SimpleNamespace(name="made-up", spec=SPEC, device="cpu", prioritised="options", progress=lambda *_: 0.0)
    training = Training(cast(Any, method), cast(Any, learner), ring, Counters(WIDTH), Timings())
    _update(training)
    ((keys, priorities),) = returned
    kind = ring.kinds[1]
    assert kind.priorities is not None and ring.kinds[0].priorities is None
    at = ring.rows.at(*np.divmod(keys, WIDTH))
    actions = torch.from_numpy(ring.rows.flat["action"][at])
    assert torch.equal(actions, learner.batches["options"].action[0]) and len(keys) == 16
    assert np.allclose(kind.priorities.of(at), actions % 10_000 + 1) and np.array_equal(
        priorities, actions % 10_000 + 1
    )
    assert (learner.batches["plain"].chance == 1).all()


def test_figures_are_those_of_the_drawn_items() -> None:
    ring = filled(ring_of(), columns_of(SPEC, WIDTH), 10)
    ring.reprioritize(keys_of(ring), np.linspace(1, 5, len(keys_of(ring))))
    tree, keys = sampled(ring, 0)
    age, p, figures = ring.rows.end - keys // WIDTH, priorities_of(ring, keys), ring.figures()
    for name, x in {"age": age, "priority": p, "chance": tree["chance"]}.items():
        for q in (10, 50, 90):
            assert figures[f"replay/{name}_{q}"] == pytest.approx(np.percentile(x, q), rel=1e-6)


def test_two_kinds_with_priorities_are_refused() -> None:
    experience = Experience(UNROLL, (ITEMS, replace(ITEMS, name="options")), capacity=1000)
    with pytest.raises(Unreplayable, match=r"items and options both have alpha > 0.*all kinds but one uniformly"):
        check_room(experience, WIDTH, 1)


def test_the_tree_is_counted_before_its_memory_is_taken() -> None:
    ring = ring_of()
    kind = ring.kinds[0]
    assert kind.priorities is not None
    tree = kind.priorities.tree
    arrays = [*ring.rows.data.values(), kind.lengths, *tree.sums, *tree.least]
    assert ring_bytes(schema_of(SPEC), SPEC, WIDTH, ring.experience, 1) == sum(x.nbytes for x in arrays)


def test_the_limiter_holds_back_updates_and_experience() -> None:
    limiter = RateLimiter(samples_per_insert=2.0, batch_size=8, min_size=100, tolerance=12)
    assert [limiter.due(steps, 0) for steps in (0, 99, 103, 104, 111, 112)] == [0, 0, 0, 1, 2, 3]
    assert limiter.due(112, 1) == 2 and limiter.due(112, 5) == 0
    assert limiter.may_insert(111, 0) and not limiter.may_insert(112, 0)
    assert limiter.may_insert(115, 1) and not limiter.may_insert(116, 1)
    assert RateLimiter(2.0, 8, 100).may_insert(10**9, 0)
