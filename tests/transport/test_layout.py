"""One flat buffer per message, every leaf a view into it.

Mutations seen to fail: the version not written; leaves without padding; a leaf not copied; fewer columns laid out as
all are.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Actions, Leaf, Spec, Tree

SPEC = Spec("test", (5, 7), "uint8", Actions("discrete", (3,)), stack=3)
SCHEMA = trajectory_schema(SPEC, {"logits": Leaf((3,), "float32")}, {"hidden": Leaf((4,), "float32", "fragment")})
LAYOUTS = [Layout(SCHEMA, 5, 3, 3), Layout(SCHEMA, 1, 1, 3), Layout({"one": Leaf((), "bool", "fragment")}, 1, 1)]


def filled(layout: Layout, seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    tree = allocate(layout.schema, layout.steps, layout.columns, layout.stack)
    for x in tree.values():
        x[...] = rng.integers(0, 2 if x.dtype == bool else 120, x.shape)
    return tree


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_packed_is_unpacked(layout: Layout) -> None:
    buffer, tree = layout.buffer(), filled(layout)
    layout.pack(tree, 2**40 + 3, buffer)
    tree_of, version = layout.unpack(buffer.copy())
    assert version == 2**40 + 3 and tree_of.keys() == tree.keys()
    for name, x in tree.items():
        assert tree_of[name].dtype == x.dtype and np.array_equal(tree_of[name], x), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_leaves_are_views_aligned_and_apart(layout: Layout) -> None:
    buffer = layout.buffer()
    base = buffer.__array_interface__["data"][0]
    end = 8  # of the version
    for name, view in layout.views(buffer).items():
        offset = view.__array_interface__["data"][0] - base
        assert np.shares_memory(view, buffer) and offset % 64 == 0 and offset >= end, name
        end = offset + view.nbytes
    assert end <= layout.nbytes == buffer.nbytes and not buffer.any()


def test_lent_leaves_are_left_where_they_are() -> None:
    layout = LAYOUTS[0]
    buffer = layout.buffer()
    lent = layout.views(buffer)
    for name, x in filled(layout, 1).items():
        lent[name][...] = x
    before = {name: x.copy() for name, x in lent.items()}
    layout.pack(lent, 7, buffer)
    layout.pack({**lent, "reward": np.full((5, 3), 9, np.float32)}, 8, buffer)
    unpacked, version = layout.unpack(buffer)
    assert version == 8 and (unpacked["reward"] == 9).all()
    assert all(np.array_equal(unpacked[name], x) for name, x in before.items() if name != "reward")


def test_lent_leaves_of_fewer_columns_are_where_such_a_message_has_them() -> None:
    layout = LAYOUTS[0]
    buffer = layout.buffer()
    lent = layout.views(buffer, 2)
    for x in lent.values():
        x[...] = 1
    packed = layout.pack(lent, 7, buffer, 2)
    unpacked, _ = layout.unpack(packed)
    assert len(packed) < layout.nbytes
    assert all(x.shape == lent[name].shape and (x == 1).all() for name, x in unpacked.items())


def test_a_leaf_of_another_shape_or_name_is_refused() -> None:
    layout = LAYOUTS[0]
    tree = filled(layout)
    with pytest.raises(ValueError, match="broadcast"):
        layout.pack({**tree, "reward": np.zeros((4, 3), np.float32)}, 0, layout.buffer())
    del tree["reward"]
    with pytest.raises(KeyError, match="reward"):
        layout.pack(tree, 0, layout.buffer())
