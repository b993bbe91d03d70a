"""Replay in this process: the newest moves of this rank's columns, from which items are drawn again and again.

An item begins at a valid move (where the extra ``opens`` is true) and ends after ``length`` moves, before the next row
whose ``closes`` is true, or at a gap. Where complete = "length" it runs on over the end of an episode, where "episode"
it ends there, and may be drawn once that end is known. Draws are with replacement: each complete item of the ring is as
likely where ``alpha`` is 0, else by its priority (`Priorities`). Several ranks that learn together have a ring each;
probabilities are those within a ring.

The rate limiter counts the env steps of all ranks by those of this one.
"""

from __future__ import annotations

from math import prod

import numpy as np

from hpc_rl.experience import Experience
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.replay.kind import Kind, kind_of
from hpc_rl.replay.priorities import Priorities
from hpc_rl.replay.relabel import relabelling, spans_bytes
from hpc_rl.replay.room import part, prioritised, room
from hpc_rl.replay.rows import Annotate, Rows, row_leaves
from hpc_rl.replay.samples import Samples
from hpc_rl.replay.saving import Saver
from hpc_rl.replay.sum_tree import tree_bytes
from hpc_rl.samplers.base import PURPOSES
from hpc_rl.types import Array, GoalReward, Schema, Spec, Tree

NEVER = np.iinfo(np.int64).max // 2


class Ring:
    """Replay of columns that step together.

    Args:
        columns: this rank's; all shards have as many.
        shards: ranks that learn together, each with a ring of its own.
        seed: of the job; update n draws from the stream (seed, "replay", n, first column).
        annotate: rows [L(+1), n] without observations of items just completed, or of their episodes to the end
            (`Items.annotated`) -> {name: [n]}, returned with the items as extras that are constant over their rows;
            "priority" becomes the item's where it has one. Items that have priorities wait for one row more, whose
            extras these need: [L+1, n].
        saver: keeps it from one attempt to the next; without one every attempt begins with an empty ring.
        goal_reward: of the environment, where items are relabelled with other goals of observations.

    Raises:
        Unreplayable: the capacity holds no item, a shard has no item in a batch, two kinds have priorities, or the
            policy has a carry.
    """

    def __init__(
        self,
        schema: Schema,
        spec: Spec,
        columns: range,
        experience: Experience,
        shards: int,
        seed: int,
        annotate: Annotate | None = None,
        saver: Saver | None = None,
        goal_reward: GoalReward | None = None,
    ) -> None:
        self.experience, self.shards, self.annotate, self.saver = experience, shards, annotate, saver
        self.seed, self.columns, width = seed, columns, len(columns)
        self.kept, slots = room(experience, width * shards, spec.stack)  # moves per column that items may cover
        self.rows = Rows(schema, spec, columns, slots)
        shard = columns.start // width % shards
        self.kinds = [
            kind_of(x, part(x, shards, shard), slots, width, experience, relabelling(x, self.rows, spec, goal_reward))
            for x in experience.items
        ]
        self.prioritised = next((kind for kind in self.kinds if kind.items.name == prioritised(experience)), None)
        self.low = 0  # the oldest row that an item may begin with
        self.env_steps = np.zeros(width, np.int64)  # inserted here
        self.updates = 0  # sampled for
        self.dropped = 0  # priorities of items that were overwritten meanwhile
        self.samples = Samples()
        self.inserted: list[Tree] = []

    def insert(self, tree: Tree) -> None:
        """Take a fragment of all columns; its moves are copied, the tree itself is kept for ``arrivals``."""
        if self.saver:
            self.saver.make_way(self.rows, len(tree["reward"]))
        self.inserted.append(tree)
        before = max(self.rows.end, 0)
        self.env_steps += self.rows.append(tree)
        low = max(self.rows.end - self.kept, 0)
        for kind in self.kinds:
            self._forget(kind, low)
            self._complete(kind, max(kind.checked, low), before)
            if kind.relabelling:
                kind.relabelling.spans.extend(before)
        self.low = low

    def due(self) -> int:
        """How many updates the limiter allows now; 0 while some kind has no complete item."""
        if not all(kind.count for kind in self.kinds):
            return 0
        steps = int(self.env_steps.sum()) * self.shards
        return min(kind.limiter.due(steps, self.updates) for kind in self.kinds)

    def sample(self, update: int) -> Batches:
        """Items of every kind for this update, keys [n] int64. Raises RuntimeError while one has no complete item."""
        stream = np.random.SeedSequence(self.seed, spawn_key=(PURPOSES["replay"], update, self.columns.start))
        draw = np.random.Generator(np.random.PCG64(stream))
        self.updates += 1
        batches: Batches = {}
        for kind in self.kinds:
            tree, keys = self.draw(kind, kind.batch, draw)
            batches[kind.items.name] = ([tree], keys)
        return batches

    def mass(self, kind: Kind) -> float:
        """Σ p^α of the complete items; their number where draws are uniform."""
        return kind.priorities.tree.total if kind.priorities else float(kind.count)

    def smallest(self, kind: Kind) -> float:
        """The smallest p^α of a complete item; 1 where draws are uniform."""
        return kind.priorities.tree.smallest if kind.priorities else 1.0

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Set the priorities [n] of items that have them; see `Priorities` for duplicates and what is refused.

        Keys whose items are not in the ring any more are passed over and counted. Raises ValueError where there are not
        as many of both.
        """
        if keys.shape != priorities.shape:
            raise ValueError(f"priorities of shape {priorities.shape} do not belong to keys of shape {keys.shape}")
        kind = self.prioritised
        if kind is None or kind.priorities is None:
            return
        width, lengths = self.rows.width, kind.lengths.reshape(-1)
        at = keys % len(lengths)
        present = (keys >= self.low * width) & (keys < self.rows.end * width) & (lengths.take(at) > 0)
        if not present.all():
            self.dropped += int((~present).sum())
            at, priorities = at[present], priorities[present]
        kind.priorities.update(at, priorities)

    def figures(self) -> dict[str, float]:
        """Items drawn of late, priorities that came too late, and those that were refused."""
        rejected = sum(kind.priorities.rejected for kind in self.kinds if kind.priorities)
        counts = {"replay/dropped": float(self.dropped), "replay/rejected": float(rejected)} if self.prioritised else {}
        return self.samples.figures() | counts

    def arrivals(self) -> list[Tree]:
        return list(self.inserted)

    def release(self) -> None:
        self.inserted.clear()

    def state(self) -> StateDict:
        """The files that rows, items and limiter are written to from now on; {} without a saver.

        With them a resumed run draws what it would have drawn. Raises what an earlier write did.
        """
        if self.saver is None:
            return {}
        kinds = {kind.items.name: kind.state() for kind in self.kinds}
        counters = {"low": self.low, "env_steps": self.env_steps.copy(), "updates": self.updates, "used": self._used()}
        return self.saver.save(self.rows, self.low, {**counters, "items": kinds})

    def load(self, parts: list[StateDict]) -> None:
        """Take up the rows of these columns, whatever rings had them; nothing without a saver.

        Raises:
            ValueError: a column is missing, or its rows are of other leaves or another capacity.
        """
        if self.saver is None:
            return
        state = self.saver.load(self.rows, parts, self.kept)
        self.low, self.updates, self.env_steps[:] = int(state["low"]), 0, np.asarray(state["env_steps"])
        unused = (float(state["used"]) - self._used()) * self.rows.width * self.shards
        self.updates = int(state["updates"]) if "updates" in state else max(0, round(unused / self._steps_per_update()))
        for kind in self.kinds:
            kind.load(state["items"][kind.items.name])
            if kind.relabelling and self.low < self.rows.end:
                kind.relabelling.spans.extend(self.low)

    def _used(self) -> float:
        """Env steps of each column that updates were made for, and those before the first update."""
        columns = self.rows.width * self.shards
        first = min(self.experience.min_size / columns, float(self.env_steps.mean()))
        return first + self.updates * self._steps_per_update() / columns

    def _steps_per_update(self) -> float:
        return max(items.batch_size / items.samples_per_insert for items in self.experience.items)

    def _forget(self, kind: Kind, low: int) -> None:
        """Let no item begin before row ``low``."""
        at = np.arange(self.low, low) % self.rows.slots
        kind.count -= int(np.count_nonzero(kind.lengths[at]))
        kind.lengths[at] = 0
        if kind.priorities and len(at):
            width = self.rows.width
            kind.priorities.end((at[:, None] * width + np.arange(width)).reshape(-1))

    def _complete(self, kind: Kind, low: int, before: int) -> None:
        """Find the items that moves from row ``before`` on completed; the first undecided one begins at row ``low``."""
        items, rows = kind.items, self.rows
        valid, gap = rows.valid(low)
        if items.complete == "episode" and valid[max(before - low, 0) :].all():
            return  # no episode ended
        moves = np.arange(low, rows.end)[:, None]
        end = _following(np.where(gap if items.complete == "length" else ~valid, moves, NEVER))
        if items.closes:
            closes = _following(np.where(rows.of(f"extras/{items.closes}", low), moves, NEVER))
            stop = np.minimum(end, np.concatenate([closes[1:], np.full_like(closes[:1], NEVER)]))
        else:
            stop = end
        length = np.minimum(stop - moves, items.length)
        if items.complete == "length":
            behind = int(bool(self.annotate and kind.priorities))  # its extras are there once a move left it
            decided = moves + length + behind <= rows.end
        else:  # an episode that broke off at a gap has no end
            decided = end < _following(np.where(gap, moves, NEVER))
        begins = valid & rows.of(f"extras/{items.opens}", low) if items.opens else valid
        at = np.arange(low, rows.end) % rows.slots
        completed = begins & decided & (kind.lengths[at] == 0)
        kind.lengths[at] += np.where(completed, length, 0).astype(np.int32)
        kind.count += int(completed.sum())
        undecided = (begins & ~decided & (end == NEVER)).any(1)
        kind.checked = low + int(undecided.argmax()) if undecided.any() else rows.end
        if (self.annotate or kind.priorities) and completed.any():
            row, column = np.nonzero(completed)
            self._begin(kind, row + low, column, end[row, column])

    def _begin(self, kind: Kind, row: Array, column: Array, end: Array) -> None:
        """Store what ``annotate`` returns for the items that begin at ``row`` [n] of ``column`` [n].

        ``end`` [n] is the row where the episode ends, or where items run on over that the first gap.
        """
        at = self.rows.at(row, column)
        notes: Tree = {}
        if self.annotate:
            length = kind.lengths.reshape(-1)[at]
            notes = dict(self.annotate(self.rows.completed(row, column, length, end, kind.items)) or {})
        priorities = notes.pop("priority", None)
        for name, x in notes.items():
            kind.notes.setdefault(name, np.zeros(kind.lengths.shape, x.dtype)).reshape(-1)[at] = x
        if kind.priorities:
            kind.priorities.begin(at, priorities)

    def draw(
        self, kind: Kind, count: int, draw: np.random.Generator, frames: Array | None = None
    ) -> tuple[Tree, Array]:
        """``count`` items of one kind and their keys [n] int64, row · b + column; where they have priorities, with the
        leaf "chance" [n]. ``frames``: see `Rows.gather`. Raises RuntimeError while none is complete."""
        if not kind.count:
            raise RuntimeError(f'no item of "{kind.items.name}" is complete; sample where ``due`` is above 0')
        keys = self._by_priority(kind.priorities, count, draw) if kind.priorities else self._uniform(kind, count, draw)
        row, column = np.divmod(keys, self.rows.width)
        at = self.rows.at(row, column)
        tree = self.rows.gather(row, column, kind.lengths.reshape(-1)[at], kind.items.length, frames)
        if kind.relabelling:
            kind.relabelling.apply(tree, row, column, self.low, draw)
        for name, x in kind.notes.items():
            tree[f"extras/{name}"] = np.tile(x.reshape(-1)[at], (kind.items.length, 1))
        self.samples.add(age=self.rows.end - row)
        if kind.priorities:
            tree["chance"] = kind.priorities.chance(at)
            self.samples.add(priority=kind.priorities.of(at), chance=tree["chance"])
        return tree, keys

    def _uniform(self, kind: Kind, count: int, draw: np.random.Generator) -> Array:
        """Keys [n] of complete items: of places drawn uniformly, those where one begins."""
        width, lengths = self.rows.width, kind.lengths.reshape(-1)
        low, high = self.low * width, self.rows.end * width
        tries = int(1.2 * count * (high - low) / kind.count) + 8
        keys = np.zeros(0, np.int64)
        while len(keys) < count:
            place = draw.integers(low, high, tries)
            keys = np.concatenate([keys, place[lengths[self.rows.at(*np.divmod(place, width))] > 0]])
        return keys[:count]

    def _by_priority(self, priorities: Priorities, count: int, draw: np.random.Generator) -> Array:
        """Keys [n] of complete items, the newest row of each slot that was drawn."""
        slot, column = np.divmod(priorities.draw(count, draw), self.rows.width)
        row = self.low + (slot - self.low) % self.rows.slots
        return row * self.rows.width + column


def _following(x: Array) -> Array:
    """[w, b] the smallest of x from each row on; x is a row number where something happens, else NEVER."""
    smallest: Array = np.minimum.accumulate(x[::-1], 0)[::-1]
    return smallest


def ring_bytes(schema: Schema, spec: Spec, columns: int, experience: Experience, shards: int) -> int:
    """Memory of such a `Ring`, without what ``annotate`` notes. Raises Unreplayable as it does."""
    _, slots = room(experience, columns * shards, spec.stack)
    for items in experience.items:
        part(items, shards, 0)
    row = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in row_leaves(schema).values())
    trees = tree_bytes(slots * columns) if prioritised(experience) else 0
    rows = slots * columns * (row + len(experience.items) * np.dtype(np.int32).itemsize)
    return rows + trees + spans_bytes(experience, slots, columns)
