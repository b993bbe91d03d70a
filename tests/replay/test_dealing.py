"""Rings of one layout go on as rings of another: every column keeps its rows, its items and what was noted of them.

Mutations seen to fail: rows dealt from the oldest one on; lengths not rolled with their rows; the newest decision taken
instead of the oldest; env steps of a part's first column given to all; lengths at the slots that they had in a ring of
another size; items kept that begin before what a smaller ring keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hpc_rl.experience import Experience, Items
from hpc_rl.fragments import trajectory
from hpc_rl.replay.ring import Ring
from hpc_rl.types import Array, Spec, Tree
from tests.replay.columns import Column, Folder, columns_of, fragment, saved, schema_of, spec_of

WIDTH, UNROLL, KEPT = 4, 4, 40
KINDS = (Items("items", 96, 3), Items("games", 96, 3, complete="episode"), Items("options", 96, 3, opens="opens"))


def annotate(rows: Tree) -> dict[str, Array]:
    return {"outcome": (rows["reward"] * ~rows["first"][1:]).sum(0).astype(np.float32)}


def rings(spec: Spec, count: int, folder: Folder, attempt: int = 0, apart: bool = False) -> list[Ring]:
    """Rings that learn together, or ``apart`` with the whole capacity each."""
    experience, width = Experience(UNROLL, KINDS, capacity=KEPT * WIDTH, min_size=30), WIDTH // count
    shards = 1 if apart else count
    return [
        Ring(schema_of(spec), spec, columns, experience, shards, 7, annotate, folder.saver(attempt))
        for columns in (range(10 + k * width, 10 + (k + 1) * width) for k in range(count))
    ]


def of_columns(tree: Tree, columns: range) -> Tree:
    keep = [column - 10 for column in columns]
    return {name: x[keep] if name in ("column", "start", "attempt") else x[:, keep] for name, x in tree.items()}


def insert(stores: Sequence[Ring], columns: list[Column], fragments: int) -> None:
    for _ in range(fragments):
        tree = fragment(columns, UNROLL)
        for ring in stores:
            ring.insert(of_columns(tree, ring.columns))
            ring.release()


def items_of(ring: Ring) -> dict[str, dict[tuple[int, int], bytes]]:
    """Of each kind (column, first action) -> all bytes of the item and its note, for every complete item."""
    found: dict[str, dict[tuple[int, int], bytes]] = {}
    for kind in ring.kinds:
        row, place = np.nonzero(kind.lengths[np.arange(ring.low, ring.rows.end) % ring.rows.slots])
        length = kind.lengths[(row + ring.low) % ring.rows.slots, place]
        assert len(row) == kind.count
        tree = ring.rows.gather(row + ring.low, place, length, kind.items.length)
        batch = trajectory([tree], spec_of(ring.rows.stack))
        note = kind.notes["outcome"][(row + ring.low) % ring.rows.slots, place]
        leaves = [x.numpy() for x in (batch.observation, batch.first, batch.action, batch.reward, batch.valid)]
        found[kind.items.name] = {
            (int(tree["column"][n]), int(tree["action"][0, n])): b"".join(x[:, n].tobytes() for x in leaves)
            + note[n].tobytes()
            for n in range(len(row))
        }
    return found


def all_items(stores: Sequence[Ring]) -> dict[str, dict[tuple[int, int], bytes]]:
    parts = [items_of(ring) for ring in stores]
    return {kind.name: {key: x for part in parts for key, x in part[kind.name].items()} for kind in KINDS}


def dealt_to(stores: Sequence[Ring], spec: Spec, count: int, folder: Folder, apart: bool = False) -> list[Ring]:
    parts, new = saved(stores), rings(spec, count, folder, 1, apart)
    for ring in new:
        ring.load(parts)
    return new


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("fragments", [2, 5, 25])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_no_item_is_lost_or_changed(before: int, after: int, fragments: int, stack: int) -> None:
    spec = spec_of(stack)
    columns, folder = columns_of(spec, WIDTH, mean=4.0), Folder()
    old = rings(spec, before, folder)
    insert(old, columns, fragments)
    new = dealt_to(old, spec, after, folder)
    assert all_items(new) == all_items(old) and all(all_items(new).values())
    for ring in new:
        assert ring.env_steps.tolist() == [column.rows[-1].start for column in columns if column.number in ring.columns]
    for more in (1, 2, 12):  # items that were not complete yet
        insert([*old, *new], columns, more)
        assert all_items(new) == all_items(old)


def test_gaps_that_only_some_rings_have() -> None:
    """A resumed run whose environments begin anew, where those of one ring show the frame that they showed before.

    Dealt to one ring, the columns lie beside each other from the newest row on.
    """
    spec = spec_of(4)
    columns, folder = columns_of(spec, WIDTH), Folder()
    old = rings(spec, 2, folder)
    insert(old, columns, 6)
    for column in columns[2:]:
        column.reset(column.rows[-1].start)
    insert(old, columns, 3)
    assert old[1].rows.end == old[0].rows.end + spec.stack
    for fragments in (0, 1, 20):
        insert(old, columns, fragments)
        (new,) = dealt_to(old, spec, 1, folder)
        assert items_of(new) == all_items(old)
    insert([*old, new], columns, 20)
    assert items_of(new) == all_items(old)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2)])
def test_rings_that_do_not_learn_together_keep_more_or_fewer_moves(before: int, after: int) -> None:
    spec, folder = spec_of(4), Folder()
    columns, old = columns_of(spec, WIDTH, mean=4.0), rings(spec, before, folder, apart=True)
    whole = rings(spec, after, Folder(), apart=True)
    insert([*old, *whole], columns, 53)
    new = dealt_to(old, spec, after, folder, apart=True)
    assert [ring.kept for ring in new] == [KEPT * after] * after != [ring.kept for ring in old]
    assert all_items(new) == (all_items(whole) if after < before else all_items(old))
    insert([*whole, *new], columns, 53)
    assert all_items(new) == all_items(whole)
    assert [ring.env_steps.tolist() for ring in new] == [ring.env_steps.tolist() for ring in whole]
