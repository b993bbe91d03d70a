"""Recorded moves as a store: what other policies did, in an order that the seed decides, within a stated memory.

The moves of all episodes that are learned from are numbered one after the other and cut into blocks of neighbours. The
blocks are dealt to the ranks once. A rank holds as many of its blocks as its memory allows, a *pool*; every round over
its blocks puts them together into pools anew. A pool is drawn from without replacement until each of its moves has
begun an item once, then comes the next. So a batch depends on the number of the update, the seed, the rank and the
number of ranks alone: nothing of it is saved, and a resumed run draws what it would have drawn.

Episodes are kept apart by a hash of their column and first step: the same ones, whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Protocol

import numpy as np

from hpc_rl.experience import Items
from hpc_rl.fragments import fragment_bytes
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.replay.room import Unreplayable, part
from hpc_rl.replay.rows import MOVES
from hpc_rl.sources import RecordedExperience, Source
from hpc_rl.types import Array, Schema, Spec, Tree

BLOCK = 1024  # moves, at most: what is read at once
_DEAL, _POOLS, _DRAW = range(3)  # purposes of draws

Read = Callable[[int, int, int, Sequence[str]], Tree]
"""(episode, begin, end, names) -> leaves of its moves, and single frames; storage/archive.py."""


class Recording(Protocol):
    """What is known of an episode without its rows; storage/episodes.py."""

    @property
    def column(self) -> int: ...
    @property
    def start(self) -> int: ...  # the column's env-step number at its first move
    @property
    def length(self) -> int: ...  # moves


@dataclass(frozen=True)
class Share:
    """The rank ``index`` of ``count`` that learn together, and the job's seed."""

    index: int
    count: int
    seed: int

    def stream(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))


@dataclass
class Pool:
    """Moves in memory: single frames [f, *frame] and leaves [m, …] of stretches of episodes, and the items that begin
    there, by the place of their first newest frame and move, moves before them in their episode, and their length."""

    leaves: Tree
    frame: Array  # [n] int64
    move: Array  # [n] int64
    before: Array  # [n] int64
    length: Array  # [n] int64
    column: Array  # [n] int32
    start: Array  # [n] int64, the column's env-step number

    def gather(self, rows: Array, steps: int, stack: int, padding: str) -> Tree:
        """The items ``rows`` [n] as a fragment of ``steps`` moves; behind the shorter ones no row is valid."""
        at, before, length = self.frame[rows], self.before[rows], self.length[rows]
        time = np.arange(1 - stack, steps + 1)[:, None]  # of a frame, 0 for that of the first move
        frames = self.leaves["observation"][at + np.clip(time, -np.minimum(before, stack - 1), length)]
        if padding == "zeros":
            frames[time < -before] = 0
        moves = self.move[rows] + np.minimum(np.arange(steps)[:, None], length - 1)
        tree = {name: x[moves] for name, x in self.leaves.items() if name != "observation"}
        first = np.arange(steps + 1)[:, None] > length
        first[0] = before == 0
        ends = {"column": self.column[rows], "start": self.start[rows]}
        return {**tree, **ends, "observation": frames, "first": first}


class Deck:
    """The moves of some ``episodes`` (numbers) that a rank draws its items of one kind from.

    ``memory`` are bytes for moves of ``size`` each; ``key`` makes its draws others than those of another kind.

    Raises:
        Unreplayable: there are fewer moves than ranks, or none.
    """

    def __init__(
        self,
        items: Items,
        episodes: Sequence[int],
        lengths: Sequence[int],
        share: Share,
        memory: float,
        size: int,
        key: int,
    ) -> None:
        self.episodes, self.share, self.key = episodes, share, key
        self.edges = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.batch = part(items, share.count, share.index)
        moves = int(self.edges[-1])
        self.block = int(np.clip(moves // (16 * share.count), 1, BLOCK))
        blocks = share.stream(_DEAL, self.key).permutation(ceil(moves / self.block))
        self.blocks = blocks[share.index :: share.count]
        if not len(self.blocks):
            raise Unreplayable(
                f"{items.name} are drawn from {moves} recorded moves, too few for {share.count} ranks; use fewer "
                "ranks, a longer run, or another held_out"
            )
        together = max(1, int(memory / (size * (self.block + items.length))))
        self.pools = ceil(len(self.blocks) / together)
        own = int(np.minimum(self.block, moves - self.blocks * self.block).sum())
        largest = min(ceil(len(self.blocks) / self.pools) * self.block, own)  # moves of a pool
        self.updates = ceil(largest / self.batch)  # of a pool
        self.place, self.order = -1, np.zeros(0, np.int64)
        self.pool: Pool | None = None

    def rows(self, update: int, load: Callable[[Array], Pool]) -> tuple[Pool, Array]:
        """The pool of this update, and the items [batch] that it draws; ``load`` makes one of blocks [k, 2], the first
        and last number + 1 of the moves of each."""
        place, turn = divmod(update, self.updates)
        if place != self.place:
            if self.pool is None or self.pools > 1:
                self.pool = None  # two are never held
                self.pool = load(self._bounds(place))
            key = (_DRAW, self.key, self.share.index, place)
            self.place, self.order = place, self.share.stream(*key).permutation(len(self.pool.length))
        assert self.pool is not None
        return self.pool, self.order[(turn * self.batch + np.arange(self.batch)) % len(self.order)]

    def _bounds(self, place: int) -> Array:
        turn, number = divmod(place, self.pools)
        shuffled = self.share.stream(_POOLS, self.key, self.share.index, turn).permutation(self.blocks)
        low = np.sort(np.array_split(shuffled, self.pools)[number]) * self.block  # as they lie in files
        return np.stack([low, np.minimum(low + self.block, self.edges[-1])], 1)

    def stretches(self, bounds: Array) -> list[tuple[int, int, int]]:
        """(episode, begin, end): the moves of blocks [k, 2], split where episodes end."""
        parts = []
        for low, high in bounds.tolist():
            first, last = (np.searchsorted(self.edges, [low, high - 1], "right") - 1).tolist()
            for number in range(first, last + 1):
                begin, end = self.edges[number : number + 2].tolist()
                parts.append((self.episodes[number], max(low, begin) - begin, min(high, end) - begin))
        return parts


class Recorded:
    """Batches of recorded moves; fragments that are inserted count and are not learned from.

    Raises:
        Unreplayable: the policy has a carry or draws once a fragment, which nobody recorded for it; or there are too
            few episodes or moves.
    """

    def __init__(
        self,
        experience: RecordedExperience,
        schema: Schema,
        spec: Spec,
        episodes: Sequence[Recording],
        read: Read,
        share: Share,
    ) -> None:
        self.experience, self.schema, self.spec, self.episodes, self.read = experience, schema, spec, episodes, read
        self.names = ["observation", *(x for x in schema if x in MOVES or x.startswith("extras/"))]
        if lost := [name for name in schema if name.startswith("carry/") or name == "noise"]:
            raise Unreplayable(
                f"{lost[0]} of this policy is not recorded by others; learn from recorded moves without it"
            )
        source = experience.source
        kept, apart = split(episodes, source.held_out)
        self.decks, size = {}, move_bytes(schema, spec)
        for items in experience.items:
            held_out = items.name == experience.apart
            chosen, memory = apart if held_out else kept, _memory(source, held_out)
            if not chosen:
                what, least = ("held out", 0.0) if held_out else ("left to learn from", source.held_out / 2)
                raise Unreplayable(
                    f"of {len(episodes)} recorded episodes none is {what}; use held_out = {least:g}, or more episodes"
                )
            lengths = [episodes[number].length for number in chosen]
            self.decks[items.name] = Deck(items, chosen, lengths, share, memory, size, int(held_out))
        self.inserted: list[Tree] = []

    def insert(self, tree: Tree) -> None:
        self.inserted.append(tree)

    def due(self) -> int:
        """1: moves do not run out."""
        return 1

    def sample(self, update: int) -> Batches:
        batches: Batches = {}
        for items in self.experience.items:
            pool, rows = self.decks[items.name].rows(update, partial(self._load, items))
            tree = pool.gather(rows, items.length, self.spec.stack, self.spec.padding)
            batches[items.name] = ([tree], None)
        return batches

    def _load(self, items: Items, bounds: Array) -> Pool:
        """The moves of some blocks, with those behind them that their last items go on to."""
        stretches = self.decks[items.name].stretches(bounds)
        longest = [min(end + items.length - 1, self.episodes[number].length) for number, _, end in stretches]
        older = [min(begin, self.spec.stack - 1) for _, begin, _ in stretches]
        moves = np.array([end - begin for (_, begin, _), end in zip(stretches, longest, strict=True)], np.int64)
        frames = moves + 1 + np.array(older, np.int64)
        leaves = {
            name: np.empty((int((frames if name == "observation" else moves).sum()), *leaf.shape), leaf.dtype)
            for name, leaf in ((name, self.schema[name]) for name in self.names)
        }
        parts: list[Tree] = []
        at, move = 0, 0
        for (number, begin, end), reach, behind in zip(stretches, longest, older, strict=True):
            rows = self.read(number, begin, reach, self.names)
            for name, x in rows.items():
                low = at if name == "observation" else move
                leaves[name][low : low + len(x)] = x
            episode, item = self.episodes[number], np.arange(end - begin)
            parts.append({
                "frame": at + behind + item,
                "move": move + item,
                "before": begin + item,
                "length": np.minimum(items.length, episode.length - begin - item),
                "column": np.full(len(item), episode.column, np.int32),
                "start": episode.start + begin + item,
            })  # fmt: skip
            at, move = at + len(rows["observation"]), move + reach - begin
        return Pool(leaves, **{name: np.concatenate([x[name] for x in parts]) for name in parts[0]})

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Nothing: items are drawn uniformly."""

    def figures(self) -> dict[str, float]:
        return {}

    def arrivals(self) -> list[Tree]:
        return list(self.inserted)

    def release(self) -> None:
        self.inserted.clear()

    def state(self) -> StateDict:
        return {}

    def load(self, parts: list[StateDict]) -> None:
        """Nothing is kept."""


def split(episodes: Sequence[Recording], held_out: float) -> tuple[list[int], list[int]]:
    """Numbers of the episodes that are learned from, and of those kept apart: the share ``held_out``, at least one
    where it is above 0 and there are two, with the smallest hashes."""
    count = max(round(held_out * len(episodes)), int(held_out > 0 and len(episodes) > 1))
    order = sorted(range(len(episodes)), key=lambda number: (_hash(episodes[number]), number))
    apart = set(order[:count])
    return [k for k in range(len(episodes)) if k not in apart], sorted(apart)


def _hash(episode: Recording) -> bytes:
    return hashlib.sha256(f"{episode.column} {episode.start}".encode()).digest()


def _memory(source: Source, held_out: bool) -> float:
    """Bytes of the source's memory that held-out items have, or all others."""
    return source.memory_bytes * (source.held_out if held_out else 1 - source.held_out)


def move_bytes(schema: Schema, spec: Spec) -> int:
    """Of one move in memory, with the place of its item."""
    leaves = {name: leaf for name, leaf in schema.items() if name in ("observation", *MOVES) or "extras/" in name}
    longer, shorter = (fragment_bytes(leaves, steps, 1, spec.stack) for steps in (1001, 1))
    return ceil((longer - shorter) / 1000) + 44
