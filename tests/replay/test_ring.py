"""The ring against the whole history of its columns, read one row at a time.

Mutations seen to fail: a stack that reaches over an episode's first row, with zeros or repeats; a lost fragment taken
as the next one; a gap that items cross; one padded row left valid; ``start`` off by one; an item drawn a move too soon,
annotated twice, kept after its rows were overwritten, closed a move early or given an end that was never seen; draws of
the older half only; the limiter without shards or without the updates made; draws that forget the update or the column;
lengths left out of ``load``; the priority among the extras; the carry of the row behind the first.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hpc_rl.experience import Experience, Items
from hpc_rl.fragments import trajectory
from hpc_rl.replay.ring import Ring, ring_bytes
from hpc_rl.replay.room import Unreplayable
from hpc_rl.replay.saving import Saver
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.types import Array, Leaf, Spec, Trajectory, Tree
from tests.replay.columns import EXTRAS, Column, Folder, columns_of, fragment, saved, schema_of, spec_of

WIDTH, UNROLL, KEPT = 3, 4, 40
KINDS = {
    "one": Items("items", 64, 1),
    "three": Items("items", 64, 3),
    "opens": Items("items", 64, 3, opens="opens"),
    "closes": Items("items", 64, 4, opens="opens", closes="closes"),
    "episode": Items("items", 64, 3, complete="episode"),
    "long": Items("items", 64, 12),
}
STACKS = [(1, "zeros"), (4, "zeros"), (4, "repeat")]


def ring_of(
    spec: Spec,
    *items: Items,
    moves: int = KEPT,
    shards: int = 1,
    shard: int = 0,
    annotate: Any = None,
    saver: Saver | None = None,
) -> Ring:
    experience = Experience(UNROLL, items, capacity=moves * WIDTH * shards)
    columns = range(10, 10 + WIDTH) if shard == 0 else range(10 + WIDTH, 10 + 2 * WIDTH)
    return Ring(schema_of(spec), spec, columns, experience, shards, 7, annotate, saver)


def filled(ring: Ring, columns: list[Column], fragments: int) -> Ring:
    for _ in range(fragments):
        ring.insert(fragment(columns, UNROLL))
        ring.release()
    return ring


def twin_length(rows: list[Any], begin: int, items: Items, stop: int) -> int:
    """Moves of the item that begins at row ``begin``, 0 where none does or it is not complete before row ``stop``."""

    def valid(t: int) -> bool:
        return t < stop and not rows[t + 1].first

    if not valid(begin) or (items.opens and not rows[begin].opens):
        return 0
    length = 0
    while length < items.length:
        t = begin + length
        if t >= stop:
            return 0
        if items.complete == "episode" and not valid(t):
            break
        if items.closes and length and rows[t].closes:
            break
        length += 1
    if items.complete == "episode":
        end = begin
        while end < stop and valid(end):
            end += 1
        return length if end < stop else 0
    return length


def drawn(ring: Ring, updates: int) -> list[tuple[Tree, Array]]:
    trees = []
    for update in range(updates):
        ((tree,), keys) = ring.sample(update)["items"]
        trees.append((tree, keys))
    return trees


def check_item(batch: Trajectory, n: int, column: Column, items: Items, stop: int) -> int:
    """Every row of item n is that of the column's history. Returns where it begins."""
    begin = int(batch.action[0, n]) - 10_000 * (int(batch.column[n]) - 10)
    length = twin_length(column.rows, begin, items, stop)
    assert length and int(batch.start[n]) == column.rows[begin].start
    rows = column.rows[begin : begin + length + 1]
    for t, row in enumerate(rows):
        stack = np.stack(row.stack) if column.spec.stack > 1 else row.stack[-1]
        assert np.array_equal(batch.observation[t, n].numpy(), stack), f"row {t}"
        assert bool(batch.first[t, n]) == row.first
    for t, row in enumerate(rows[:-1]):
        assert int(batch.action[t, n]) == row.action and float(batch.discount[t, n]) == row.discount
        assert float(batch.reward[t, n]) == np.float32(row.reward)
        assert float(batch.extras["q"][t, n, 1]) == row.action + 0.25
        assert bool(batch.valid[t, n]) == (not rows[t + 1].first)
    assert not batch.valid[length:, n].any(), "padded rows are not valid"
    return begin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stack", "padding"), STACKS)
def test_items_are_rows_of_the_history(stack: int, padding: str, kind: str) -> None:
    spec, items = spec_of(stack, padding), KINDS[kind]
    columns = columns_of(spec, WIDTH)
    ring = ring_of(spec, items)
    starts: set[tuple[int, int]] = set()
    for fragments in range(1, 30):  # the ring is full after ten
        filled(ring, columns, 1)
        stop = fragments * UNROLL
        lowest = max(0, stop - KEPT)
        complete = {
            (k, begin)
            for k, column in enumerate(columns)
            for begin in range(lowest, stop)
            if twin_length(column.rows, begin, items, stop)
        }
        assert ring.kinds[0].count <= len(complete)
        if not ring.kinds[0].count or fragments not in (2, 3, 5, 11, 20, 29):
            continue
        for tree, keys in drawn(ring, 2):
            batch = trajectory([tree], spec)
            assert keys.dtype == np.int64 and batch.reward.shape == (items.length, items.batch_size)
            for n in range(items.batch_size):
                k = int(batch.column[n]) - 10
                begin = check_item(batch, n, columns[k], items, stop)
                assert (k, begin) in complete
                starts.add((k, begin))
    assert len(starts) > 100 or kind in ("closes", "opens")


@pytest.mark.parametrize("kind", KINDS)
def test_every_complete_item_is_as_likely(kind: str) -> None:
    spec, items = spec_of(4), KINDS[kind]
    columns = columns_of(spec, WIDTH)
    ring = filled(ring_of(spec, items), columns, 20)
    stop = 20 * UNROLL
    complete = [
        (k, begin)
        for k, column in enumerate(columns)
        for begin in range(stop - KEPT, stop)
        if twin_length(column.rows, begin, items, stop)
    ]
    counts: Counter[tuple[int, int]] = Counter()
    for tree, _ in drawn(ring, 200):
        for column, action in zip(tree["column"], tree["action"][0], strict=True):
            k = int(column) - 10
            counts[k, int(action) - 10_000 * k] += 1
    assert set(counts) == set(complete) and ring.kinds[0].count == len(complete)
    expected = 200 * 64 / len(complete)
    chi = sum((counts[item] - expected) ** 2 / expected for item in complete)
    assert chi < len(complete) + 5 * (2 * len(complete)) ** 0.5


def check_valid_rows(batch: Trajectory, n: int, column: Column) -> list[int]:
    """Up to the last valid move rows follow each other as in the history. Returns the numbers of the moves."""
    begin = int(batch.action[0, n]) - 10_000 * (int(batch.column[n]) - 10)
    moves = 1 + int(batch.valid[:, n].nonzero().max())
    for t in range(moves + 1):
        row = column.rows[begin + t]
        stack = np.stack(row.stack) if column.spec.stack > 1 else row.stack[-1]
        assert np.array_equal(batch.observation[t, n].numpy(), stack), f"row {t}"
        assert t == moves or int(batch.action[t, n]) == row.action
    return list(range(begin, begin + moves))


@pytest.mark.parametrize("skip", [True, False], ids=["lost fragment", "new episode"])
@pytest.mark.parametrize("kind", ["three", "long", "episode"])
@pytest.mark.parametrize(("stack", "padding"), STACKS)
def test_no_item_crosses_a_gap(stack: int, padding: str, kind: str, skip: bool) -> None:
    """A fragment that never came, or a resumed run whose environments could not be cloned and begin new episodes."""
    spec = spec_of(stack, padding)
    columns = columns_of(spec, WIDTH, mean=15.0)
    ring = filled(ring_of(spec, KINDS[kind]), columns, 5)
    cut = 5 * UNROLL
    if skip:
        fragment(columns, UNROLL)
    else:
        for column in columns:
            column.reset(column.rows[-1].start)
    filled(ring, columns, 4)
    behind = cut + (UNROLL if skip else 1)
    before_cut = set()
    for tree, _ in drawn(ring, 20):
        batch = trajectory([tree], spec)
        for n in range(64):
            moves = check_valid_rows(batch, n, columns[int(batch.column[n]) - 10])
            assert moves[-1] < cut or moves[0] >= behind
            before_cut.add(moves[0] < cut)
            if kind == "episode" and moves[-1] == cut - 1:  # its end was never seen
                assert columns[int(batch.column[n]) - 10].rows[cut].ended
    assert before_cut == {True, False}


def test_what_the_next_fragment_overwrites_is_not_drawn() -> None:
    """Nothing that an item may be made of is written by the next insertion, frames of its first stack included."""
    spec = spec_of(4)
    columns = columns_of(spec, WIDTH)
    ring = filled(ring_of(spec, KINDS["three"]), columns, 20)
    keys = np.concatenate([ring.sample(update)["items"][1] for update in range(20)])  # type: ignore[misc]
    before = {name: x.copy() for name, x in ring.rows.data.items()}
    fragment(columns, UNROLL)
    ring.insert(fragment(columns, UNROLL))  # behind a gap, which takes the most rows
    assert (keys // WIDTH).min() == 20 * UNROLL + spec.stack - 1 - KEPT
    for name, offsets in {"observation": range(-3, 4), "first": range(-3, 4), "action": range(3)}.items():
        changed = (before[name] != ring.rows.data[name]).reshape(ring.rows.slots, -1).any(1)
        assert changed.sum() >= UNROLL
        assert not any(changed[(keys // WIDTH + offset) % ring.rows.slots].any() for offset in offsets), name


def test_the_limiter_counts_env_steps_of_all_shards() -> None:
    spec = spec_of(1)
    items = Items("items", 8, 1, samples_per_insert=2.0)
    experience = Experience(UNROLL, (items,), capacity=10_000, min_size=60)
    ring = Ring(schema_of(spec), spec, range(10, 10 + WIDTH), experience, 2, 7)
    columns, updates, steps = columns_of(spec, WIDTH), 0, 0
    for _ in range(20):
        tree = fragment(columns, UNROLL)
        ring.insert(tree)
        steps += int((~tree["first"][1:]).sum())
        assert ring.arrivals() == [tree]
        ring.release()
        assert ring.due() == max(0, int((2 * steps - 60) * 2 / 8) - updates)
        for _ in range(ring.due() // 2):
            ((found,), _) = ring.sample(updates)["items"]
            assert found["reward"].shape == (1, 4)
            updates += 1
    assert updates > 40 and steps < 20 * UNROLL * WIDTH


def test_draws_depend_on_update_shard_and_seed_alone() -> None:
    spec = spec_of(1)

    def keys(update: int, shard: int = 0, before: int = 0) -> Array:
        columns = columns_of(spec, WIDTH)
        for column in columns:
            column.number += WIDTH * shard
        ring = filled(ring_of(spec, KINDS["one"], shards=2, shard=shard), columns, 12)
        drawn(ring, before)
        keys_of_update = ring.sample(update)["items"][1]
        assert keys_of_update is not None
        return keys_of_update

    assert np.array_equal(keys(5), keys(5, before=3))
    assert not np.array_equal(keys(5), keys(6)) and not np.array_equal(keys(5), keys(5, shard=1))


@pytest.mark.parametrize("fragments", [0, 1, 3, 25])
def test_a_resumed_ring_draws_the_same_bits(fragments: int) -> None:
    spec, kinds = spec_of(4), (KINDS["closes"], Items("games", 8, 3, complete="episode"))

    def annotate(rows: Tree) -> dict[str, Array]:
        return {"outcome": rows["reward"].sum(0)}

    folder = Folder()
    uninterrupted = ring_of(spec, *kinds, annotate=annotate, saver=folder.saver())
    columns = columns_of(spec, WIDTH)
    filled(uninterrupted, columns, fragments)
    if fragments > 1:
        uninterrupted.sample(3)
    uninterrupted.rows.data["reward"][0, 0] = np.nan  # what an environment returned may stand in a checkpoint
    resumed = ring_of(spec, *kinds, annotate=annotate, saver=folder.saver(1))
    resumed.load(saved([uninterrupted]))
    for update in range(20):
        tree = fragment(columns, UNROLL)
        for ring in (uninterrupted, resumed):
            ring.insert(tree)
            ring.release()
        assert uninterrupted.due() == resumed.due()
        if all(kind.count for kind in uninterrupted.kinds):
            (one, other) = (ring.sample(update) for ring in (uninterrupted, resumed))
            for name in ("items", "games"):
                assert np.array_equal(one[name][1], other[name][1])  # type: ignore[arg-type]
                for leaf, x in one[name][0][0].items():
                    assert x.tobytes() == other[name][0][0][leaf].tobytes(), leaf
    assert {"outcome"} == uninterrupted.kinds[0].notes.keys()


def test_another_job_is_refused_in_a_sentence() -> None:
    spec, folder = spec_of(1), Folder()
    ring = filled(ring_of(spec, KINDS["one"], shards=2, saver=folder.saver()), columns_of(spec, WIDTH), 5)
    (part,) = saved([ring])
    with pytest.raises(ValueError, match="none of the 1 saved replays has column 13"):
        ring_of(spec, KINDS["one"], shards=2, shard=1, saver=folder.saver(1)).load([part])
    with pytest.raises(ValueError, match="do not hold its rows up to 20 without a gap"):
        ring_of(spec, KINDS["one"], shards=2, saver=folder.saver(1)).load([{**part, "rows": []}])
    (piece,) = part["rows"]
    rows = from_bytes(folder[piece["name"]])["rows"]
    for leaf in ({"reward": np.zeros((20, 3, 3), np.uint8)}, {"reward": rows["reward"][1:]}):
        folder[piece["name"]] = to_bytes({"first": 0, "rows": {**rows, **leaf}})
        with pytest.raises(ValueError, match=r"bytes where this job has .*; resume with the job that wrote it"):
            ring_of(spec, KINDS["one"], shards=2, saver=folder.saver(1)).load([part])


@pytest.mark.parametrize("kind", ["opens", "closes", "episode", "three"])
def test_annotate_sees_each_item_once_when_it_is_complete(kind: str) -> None:
    """Rows [L(+1), n] without observations; its answer comes back with the item, the priority stays away."""
    spec, items = spec_of(4), KINDS[kind]
    columns = columns_of(spec, WIDTH)
    counts: Counter[int] = Counter()

    def annotate(rows: Tree) -> dict[str, Array]:
        assert "observation" not in rows and rows["first"].shape == (items.length + 1, len(rows["start"]))
        counts.update(rows["action"][0].tolist())
        valid = ~rows["first"][1:]
        outcome = (rows["reward"] * valid).sum(0).astype(np.float32)
        return {"outcome": outcome, "priority": np.ones(len(outcome))}

    ring = filled(ring_of(spec, items, annotate=annotate), columns, 25)
    complete = [
        row.action
        for column in columns
        for begin, row in enumerate(column.rows[: 25 * UNROLL])
        if twin_length(column.rows, begin, items, 25 * UNROLL)
    ]
    assert set(counts.values()) == {1} and set(complete) <= set(counts)
    for tree, _ in drawn(ring, 5):
        batch = trajectory([tree], spec)
        expected = (batch.reward * batch.valid).sum(0)
        assert np.allclose(batch.extras["outcome"], expected.expand(items.length, -1), atol=1e-5)
        assert "priority" not in batch.extras


def test_items_begin_with_the_carry_that_the_extras_remember() -> None:
    """Here that of the state "q", which has one row for each move: the item's is the one before its row 0."""
    spec = spec_of(1)
    schema = {**schema_of(spec), "carry/q": Leaf((2,), "float32", "fragment")}
    ring = Ring(schema, spec, range(10, 10 + WIDTH), Experience(UNROLL, (KINDS["three"],), KEPT * WIDTH), 1, 7)
    for tree, _ in drawn(filled(ring, columns_of(spec, WIDTH), 25), 5):
        batch = trajectory([tree], spec)
        assert "q" not in batch.extras and batch.carry["q"].shape == (64, 2)
        assert (batch.carry["q"] == batch.action[0][:, None] + 0.25)[:, 1].all()


def test_two_kinds_are_views_of_one_ring() -> None:
    spec = spec_of(1)
    ring = filled(ring_of(spec, KINDS["three"], Items("options", 8, 6, opens="opens")), columns_of(spec, WIDTH), 12)
    batches = ring.sample(0)
    assert {name: len(keys) for name, (_, keys) in batches.items() if keys is not None} == {"items": 64, "options": 8}
    assert batches["options"][0][0]["extras/opens"][0].all()


def test_what_cannot_be_replayed_is_refused() -> None:
    spec = spec_of(1)
    with pytest.raises(Unreplayable, match=r"holds 3 moves of each of 3 columns.*takes 7; set the capacity to 21"):
        ring_of(spec, KINDS["three"], moves=3)
    with pytest.raises(Unreplayable, match="batch of 1 items cannot be shared by 2 learners"):
        ring_of(spec, Items("items", 1, 1), shards=2)
    with pytest.raises(Unreplayable, match="carry/lstm cannot be replayed"):
        schema = {**schema_of(spec), "carry/lstm": Leaf((2,), "float32", "fragment")}
        Ring(schema, spec, range(WIDTH), Experience(UNROLL, (KINDS["one"],), 1000), 1, 0)
    ring = ring_of(spec, KINDS["one"])
    columns = columns_of(spec, WIDTH)
    with pytest.raises(RuntimeError, match="no item"):
        ring.sample(0)
    filled(ring, columns, 1)
    other = fragment(columns, UNROLL)
    other["column"] += 1
    with pytest.raises(ValueError, match="do not step together"):
        ring.insert(other)
    assert EXTRAS


@pytest.mark.parametrize(("stack", "padding"), STACKS)
def test_its_memory_is_known_before_it_is_taken(stack: int, padding: Any) -> None:
    spec = spec_of(stack, padding)
    ring = ring_of(spec, KINDS["one"], KINDS["three"], shards=2)
    arrays = [*ring.rows.data.values(), *(kind.lengths for kind in ring.kinds)]
    assert ring_bytes(schema_of(spec), spec, WIDTH, ring.experience, 2) == sum(x.nbytes for x in arrays)
    with pytest.raises(Unreplayable, match="a batch of 64 items cannot be shared by 65 learners"):
        ring_bytes(schema_of(spec), spec, WIDTH, Experience(UNROLL, (KINDS["one"],), 10**6), 65)
    with pytest.raises(Unreplayable, match="set the capacity to"):
        ring_bytes(schema_of(spec), spec, WIDTH, Experience(UNROLL, (KINDS["one"],), 9), 1)
