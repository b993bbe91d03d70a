"""The nouns: stacks rebuilt from single frames, validity, sizes, fragments side by side.

Mutations seen to fail: ``missing`` off by one either way; ``row + stack`` → ``row + stack - 1``; the paddings
exchanged; ``first[1:]`` → ``first[:-1]`` in valid; joining on axis 0; noise or chance left out of ENDS. (Without the
``break`` in `stacked` nothing changes: later borders write over what earlier ones left.)
"""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from hpc_rl.fragments import allocate, fragment_bytes, part, stacked, trajectory, trajectory_schema
from hpc_rl.optim.trajectories import concatenate, moved
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Actions, Leaf, Spec

ROWS = 9  # T+1


def environment_stacks(borders: set[int], before: int, stack: int, padding: str) -> np.ndarray:
    """[ROWS, stack] of one column as an environment would show them; frames count up from 1.

    ``before`` moves of the first episode lie before row 0; ``borders`` are the rows that open an episode.
    """
    stacks: list[list[int]] = []
    frames: list[int] = []
    for frame, row in enumerate(range(-before, ROWS), 1):
        if row == -before or row in borders:
            frames = [frame if padding == "repeat" else 0] * (stack - 1)
        frames = [*frames, frame][-stack:]
        if row >= 0:
            stacks.append(list(frames))
    return np.array(stacks)


def fragment(stacks: np.ndarray) -> np.ndarray:
    """[T + stack] single frames, the first stack − 1 from row 0's own stack, as the sampler lays them out."""
    return np.concatenate([stacks[0, :-1], stacks[:, -1]])


def columns_of_borders() -> list[tuple[set[int], int]]:
    """An episode border at every row, at every pair of rows (LAST lies between), and none."""
    single = [({row}, before) for row in range(1, ROWS) for before in (0, 1, 5)]
    double = [({a, b}, 2) for a in range(1, ROWS) for b in range(a + 1, ROWS)]
    return [*single, *double, (set(), 0), (set(), 2), ({0}, 0)]


@pytest.mark.parametrize("padding", ["zeros", "repeat"])
@pytest.mark.parametrize("stack", [2, 3, 4])
def test_stacks_are_the_environments_own(padding: str, stack: int) -> None:
    columns = columns_of_borders()
    expected = np.stack([environment_stacks(b, before, stack, padding) for b, before in columns], 1)
    frames = np.stack([fragment(expected[:, j]) for j in range(len(columns))], 1)
    first = np.array([[row in b for b, _ in columns] for row in range(ROWS)])
    shape = (2, 3)  # of a frame
    pixels = torch.tensor(frames).reshape(*frames.shape, 1, 1).expand(*frames.shape, *shape).to(torch.uint8)
    actual = stacked(pixels, torch.tensor(first), stack, padding)
    assert actual.shape == (ROWS, len(columns), stack, *shape)
    assert np.array_equal(actual[..., 0, 0].numpy(), expected)
    assert np.array_equal(actual[..., 1, 2].numpy(), expected)


@pytest.mark.parametrize("padding", ["zeros", "repeat"])
def test_stacks_within_one_episode_take_no_memory(padding: str) -> None:
    """Row 0 may open it: its stack is the environment's own."""
    frames = torch.randint(256, (3 + 6, 2, 5, 7), dtype=torch.uint8)
    first = torch.zeros(6, 2, dtype=torch.bool)
    first[0, 1] = True
    actual = stacked(frames, first, 4, padding)
    assert actual.shape == (6, 2, 4, 5, 7) and actual.data_ptr() == frames.data_ptr()
    assert all(torch.equal(actual[t, :, k], frames[t + k]) for t in range(6) for k in range(4))


SPEC = Spec("test", (3,), "float32", Actions("multidiscrete", (2, 3)))
PIXELS = Spec("test", (5, 7), "uint8", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)), stack=4)
EXTRAS = {"logits": Leaf((5,), "float32")}
CARRY = {"hidden": Leaf((4,), "float32", "fragment")}


def tree_of(spec: Spec, columns: range, steps: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, columns.start])
    tree = allocate(trajectory_schema(spec, EXTRAS, CARRY), steps, len(columns), spec.stack)
    for x in tree.values():
        x[...] = rng.integers(0, 2, x.shape)
    tree["column"][:] = columns
    return tree


@pytest.mark.parametrize("spec", [SPEC, PIXELS])
def test_bytes_are_the_payload_of_the_layout(spec: Spec) -> None:
    schema = trajectory_schema(spec, EXTRAS, CARRY)
    layout = Layout(schema, 6, 3, spec.stack)
    views = layout.views(layout.buffer())
    assert fragment_bytes(schema, 6, 3, spec.stack) == sum(x.nbytes for x in views.values())
    assert {name: x.shape for name, x in views.items()} == {
        name: x.shape for name, x in allocate(schema, 6, 3, spec.stack).items()
    }


def test_rows_of_a_leaf_say_its_shape() -> None:
    shapes = {rows: Leaf((2,), "int8", rows).array_shape(5, 3, 4) for rows in ("step", "edge", "frame", "fragment")}
    assert shapes == {"step": (5, 3, 2), "edge": (6, 3, 2), "frame": (9, 3, 2), "fragment": (3, 2)}


@pytest.mark.parametrize("spec", [SPEC, PIXELS])
def test_fragments_are_joined_on_the_columns(spec: Spec) -> None:
    trees = [tree_of(spec, range(0, 2)), tree_of(spec, range(2, 5))]
    joined = trajectory(trees, spec)
    assert joined.observation.shape == (7, 5, *spec.observation) and joined.column.tolist() == [0, 1, 2, 3, 4]
    for name in ("first", "action", "reward", "discount", "version"):
        assert np.array_equal(getattr(joined, name).numpy(), np.concatenate([tree[name] for tree in trees], 1))
    assert np.array_equal(joined.start.numpy(), np.concatenate([tree["start"] for tree in trees]))
    assert joined.chance.tolist() == [1] * 5 and joined.noise.shape == (5, 0)
    assert np.array_equal(joined.extras["logits"].numpy(), np.concatenate([t["extras/logits"] for t in trees], 1))
    assert np.array_equal(joined.carry["hidden"].numpy(), np.concatenate([t["carry/hidden"] for t in trees]))
    for tree, keep in zip(trees, (slice(0, 2), slice(2, 5)), strict=True):
        alone, cut = trajectory([tree], spec), joined.columns(keep)
        assert torch.equal(alone.observation, cut.observation) and torch.equal(alone.column, cut.column)
        assert torch.equal(alone.extras["logits"], cut.extras["logits"])
        assert torch.equal(alone.carry["hidden"], cut.carry["hidden"])


def test_noise_and_chance_go_with_their_columns() -> None:
    trees = [tree_of(SPEC, range(0, 2)), tree_of(SPEC, range(2, 5))]
    for k, tree in enumerate(trees):
        tree["noise"] = np.arange(2 * len(tree["column"]), dtype=np.float32).reshape(-1, 2) + 10 * k
    assert trajectory_schema(SPEC, {}, {}, 2)["noise"] == Leaf((2,), "float32", "fragment", "", ANY)
    assert "noise" not in trajectory_schema(SPEC, {}, {})
    joined = trajectory(trees, SPEC)
    assert joined.noise.tolist() == [[0, 1], [2, 3], [10, 11], [12, 13], [14, 15]]
    rare = replace(joined, chance=torch.arange(1.0, 6.0))
    for piece in (rare.columns(slice(1, 4)), concatenate([rare.columns(slice(1, 2)), rare.columns(slice(2, 4))])):
        assert piece.noise.tolist() == [[2, 3], [10, 11], [12, 13]] and piece.chance.tolist() == [2, 3, 4]
    assert torch.equal(moved(rare, "cpu").noise, joined.noise)


def test_a_move_is_valid_unless_it_leads_to_a_first_row() -> None:
    """The column in the picture at the top of types.py."""
    tree = tree_of(SPEC, range(1))
    tree["first"][:, 0] = [1, 0, 0, 1, 0, 0, 1]
    assert trajectory([tree], SPEC).valid[:, 0].tolist() == [True, True, False, True, True, False]


def test_part_takes_the_leaves_below_a_prefix() -> None:
    tree = tree_of(SPEC, range(2))
    assert list(part(tree, "extras")) == ["logits"] and part(tree, "extras")["logits"] is tree["extras/logits"]


def test_a_missing_leaf_is_named() -> None:
    tree = tree_of(SPEC, range(2))
    del tree["reward"]
    with pytest.raises(KeyError, match="reward"):
        trajectory([tree], SPEC)
