"""Rows of experience by their number: what a ring stores, and how items are gathered from it without a Python loop.

Row t of a column holds one observation (a single frame), ``first``, and the move that leaves it. Rows are numbered for
ever; the newest ``slots`` of them are in memory, row t in slot t mod slots. A fragment whose row 0 is the newest row
continues it. Any other one begins behind a *gap*: moves that no item crosses, and between them the stack - 1 frames
that its first observation still shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from hpc_rl.experience import Items
from hpc_rl.fragments import allocate
from hpc_rl.replay.room import Unreplayable
from hpc_rl.types import Array, Schema, Spec, Tree

MOVES = ("action", "reward", "discount", "version")
"""Leaves of a move that learners read, beside the extras; episode figures are taken from arrivals."""

Annotate = Callable[[Tree], dict[str, Array] | None]
"""A method's ``annotate`` with its config in place."""


def row_leaves(schema: Schema) -> dict[str, tuple[tuple[int, ...], str]]:
    """Leaf -> (shape, dtype) of what is kept of a row of one column.

    Raises:
        Unreplayable: the policy has a carry that its extras do not remember, known before row 0 of a fragment only.
    """
    for name in _carried(schema):
        if f"extras/{name}" not in schema:
            raise Unreplayable(
                f"carry/{name} cannot be replayed, for an item may begin in the middle of a fragment; "
                f"remember the {name} before each move in the policy's extras, under the same name"
            )
    names = ["observation", "first", *_moves(schema)]
    leaves: dict[str, tuple[tuple[int, ...], str]] = {name: (schema[name].shape, schema[name].dtype) for name in names}
    return leaves | {"start": ((), "int64"), "gap": ((), "bool")}  # env steps of the column before the row; see above


def _moves(schema: Schema) -> list[str]:
    return [name for name in schema if name in MOVES or name.startswith("extras/")]


def _carried(schema: Schema) -> list[str]:
    return [name.removeprefix("carry/") for name in schema if name.startswith("carry/")]


def blank_items(schema: Schema, items: Items, steps: int, columns: int, stack: int) -> Tree:
    """Items of zeros as `Rows.completed` gives them: ``annotate`` adds the same leaves to these as to any others."""
    leaves = {name: leaf for name, leaf in schema.items() if name != "observation"}
    if items.annotated == "episode":
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("extras/")}
    longer = {name: leaf for name, leaf in leaves.items() if name.startswith("extras/") and items.alpha}
    return {**allocate(leaves, steps, columns, stack), **allocate(longer, steps + 1, columns, stack)}


class Rows:
    """The newest rows of b columns that step together. Raises Unreplayable as `row_leaves` does."""

    def __init__(self, schema: Schema, spec: Spec, columns: Sequence[int], slots: int) -> None:
        self.stack, self.padding, self.width, self.slots = spec.stack, spec.padding, len(columns), slots
        self.end = -1  # the newest row; the moves before it are complete
        self.column = np.array(columns, np.int32)  # [b]
        self.moves, self.carried, leaves = _moves(schema), _carried(schema), row_leaves(schema)
        self.data = {name: np.zeros((slots, self.width, *shape), dtype) for name, (shape, dtype) in leaves.items()}
        self.flat = {name: x.reshape(slots * self.width, *x.shape[2:]) for name, x in self.data.items()}

    def append(self, tree: Tree) -> Array:
        """Copy a fragment [T(+1), b] behind the newest row. Returns its env steps [b].

        Raises:
            ValueError: it is not of the same columns as all others.
        """
        if not np.array_equal(self.column, tree["column"]):
            raise ValueError(f"columns {tree['column']} do not step together with columns {self.column} of this replay")
        if not self._continues(tree):
            self._open_gap(tree)
        at = np.arange(self.end, self.end + len(tree["reward"]) + 1) % self.slots
        valid = ~tree["first"][1:]
        for name in self.moves:
            self.data[name][at[:-1]] = tree[name]
        self.data["gap"][at] = False
        self.data["first"][at] = tree["first"]
        self.data["observation"][at] = tree["observation"][self.stack - 1 :]
        self.data["start"][at[0]] = tree["start"]
        self.data["start"][at[1:]] = tree["start"] + valid.cumsum(0)
        self.end += len(valid)
        steps: Array = valid.sum(0)
        return steps

    def _continues(self, tree: Tree) -> bool:
        """Whether row 0 of a fragment is the newest row: its env step, ``first`` and every byte of its frame."""
        if self.end < 0:
            return False
        at = self.end % self.slots
        row_0 = {"start": tree["start"], "first": tree["first"][0], "observation": tree["observation"][self.stack - 1]}
        return all(self.data[name][at].tobytes() == x.tobytes() for name, x in row_0.items())

    def _open_gap(self, tree: Tree) -> None:
        """Make the frames before row 0 of a fragment the newest rows, between moves that no item crosses."""
        at = np.arange(self.end, self.end + self.stack) % self.slots
        for name in self.moves:
            self.data[name][at] = 0
        self.data["gap"][at] = True
        self.data["first"][at[1:]] = False
        self.data["start"][at[1:]] = tree["start"]
        self.data["observation"][at[1:]] = tree["observation"][: self.stack - 1]
        self.end += self.stack

    def valid(self, low: int) -> tuple[Array, Array]:
        """(valid, gap) [end - low, b] bool of the moves from row ``low`` on."""
        at = np.arange(low, self.end + 1) % self.slots
        gap = self.data["gap"][at[:-1]]
        return ~self.data["first"][at[1:]] & ~gap, gap

    def of(self, name: str, low: int) -> Array:
        """[end - low, b, …] of one leaf of the moves from row ``low`` on."""
        return self.data[name][np.arange(low, self.end) % self.slots]

    def at(self, row: Array, column: Array) -> Array:
        """Positions in ``flat`` arrays."""
        return row % self.slots * self.width + column

    def gather(self, row: Array, column: Array, length: Array, longest: int, frames: Array | None = None) -> Tree:
        """Items [longest(+1), n] side by side, as `fragments.trajectory` takes them.

        What the policy carried is that before row 0, from the extras of the same name; the other rows of these are left
        out: a recurrent state of every row would be most of a batch.

        Args:
            row, column: [n], where each begins; columns count from 0.
            length: [n] moves >= 1; behind them the last row is repeated as one that opens an episode, so not valid.
            frames: [stack - 1 + longest + 1, n, *frame] to write observations to, contiguous but for the first axis;
                else they get new memory.
        """
        tree = self._moves_of(row, column, length, longest, self.moves)
        tree["observation"] = self._frames(row, column, length, longest, frames)
        return tree

    def _moves_of(self, row: Array, column: Array, length: Array, longest: int, names: Sequence[str]) -> Tree:
        """What `gather` gives of the leaves ``names`` of moves, without observations."""
        offset = np.arange(longest + 1)[:, None]
        edge = self.at(row + np.minimum(offset, length), column)
        move = self.at(row + np.minimum(offset[:-1], length - 1), column)
        carried = {f"extras/{name}": f"carry/{name}" for name in self.carried}
        tree = {name: self.flat[name].take(move, 0) for name in names if name not in carried}
        tree |= {carry: self.flat[name].take(move[0], 0) for name, carry in carried.items() if name in names}
        tree["first"] = self.flat["first"].take(edge)
        tree["first"] |= offset > length
        tree["start"] = self.flat["start"].take(edge[0])
        tree["column"] = self.column.take(column)
        return tree

    def completed(self, row: Array, column: Array, length: Array, end: Array, items: Items) -> Tree:
        """Items of ``length`` [n] moves as ``annotate`` gets them, without observations; ``end`` [n]: see
        `Items.annotated`. Where they have priorities extras are [longest + 1, n], also those of the row behind the last
        move, where the policy acted on what that move led to.
        """
        if items.annotated == "episode":
            length = end - row
            return self._moves_of(row, column, length, int(length.max()), MOVES)
        tree = self._moves_of(row, column, length, items.length, self.moves)
        if items.alpha:
            edge = self.at(row + np.minimum(np.arange(items.length + 1)[:, None], length), column)
            tree |= {name: self.flat[name].take(edge, 0) for name in tree if name.startswith("extras/")}
        return tree

    def _frames(self, row: Array, column: Array, length: Array, longest: int, into: Array | None) -> Array:
        """Frames [stack - 1 + longest + 1, n, …] of `gather`; those from before the episode's first row are what the
        environment pads with."""
        edge = self.at(row + np.minimum(np.arange(longest + 1)[:, None], length), column)
        if self.stack == 1:
            return self._copied(edge, into)
        place = np.arange(self.stack)[:, None]
        before = row + place + 1 - self.stack
        opens = self.flat["first"].take(self.at(before, column))
        opened = np.where(opens, place, 0).max(0)  # the place of the newest frame that opens an episode
        if self.padding == "repeat":
            before = row + np.maximum(place, opened) + 1 - self.stack
        frames = self._copied(np.concatenate([self.at(before[:-1], column), edge]), into)
        if self.padding == "zeros":
            frames[: self.stack - 1][place[:-1] < opened] = 0
        return frames

    def _copied(self, at: Array, into: Array | None) -> Array:
        """Frames at positions ``at`` [k, n], each copied once."""
        frames = self.flat["observation"]
        if into is None or into.flags.c_contiguous:
            return frames.take(at, 0, into, "clip")
        for positions, target in zip(at, into, strict=True):
            frames.take(positions, 0, target, "clip")
        return into

    @property
    def row_bytes(self) -> int:
        """Of all columns."""
        return sum(x[0].nbytes for x in self.data.values())

    def copy(self, first: int, end: int) -> Tree:
        """Rows first..end as bytes [n, b, k]: they may hold NaN that environments returned, and pixels compress."""
        at = np.arange(first, end) % self.slots
        return {
            name: x[at].view(np.uint8).reshape(len(at), self.width, prod(x.shape[2:]) * x.itemsize)
            for name, x in ((name, x.reshape(*x.shape[:2], -1)) for name, x in self.data.items())
        }

    def head(self) -> Tree:
        """The newest row as of `copy`, without the move that leaves it, which nobody knows yet."""
        tree = self.copy(self.end, self.end + 1)
        return tree | {name: np.zeros_like(tree[name]) for name in (*self.moves, "gap")}

    def clear(self, end: int) -> None:
        """Let all rows up to ``end`` be gaps, before `put`."""
        self.end = end
        self.data["gap"][:] = True

    def put(self, first: int, end: int, tree: Tree, places: Sequence[tuple[int, int]]) -> None:
        """Bring back rows first..end of ``tree``, bytes as of `copy`: its column k as column j, for all (k, j).

        Rows that would not be in memory are passed over. Raises ValueError where it is of other rows or leaves.
        """
        present = slice(max(0, self.end + 1 - self.slots - first), None)
        theirs, ours = (list(side) for side in zip(*places, strict=True))
        for name, x in self.data.items():
            saved = np.asarray(tree[name]) if name in tree else np.zeros((0, 0, 0), np.uint8)
            size = prod(x.shape[2:]) * x.itemsize
            if saved.ndim != 3 or saved.shape[0] != end - first or saved.shape[2] != size:
                raise ValueError(
                    f"the saved replay has {name} of {saved.shape} bytes where this job has {(end - first, size)}; "
                    "resume with the job that wrote it"
                )
            at = np.arange(first, end)[present, None] % self.slots
            rows = np.ascontiguousarray(saved[present][:, theirs])
            x[at, ours] = rows.view(x.dtype).reshape(*rows.shape[:2], *x.shape[2:])
