"""Whole episodes, each used once: what methods learn from that judge a policy by its return.

An episode is an item if every move of it was made with the same weights; others are passed over. A batch is all
complete episodes since the last one, and is due as soon as every column of this rank has one: shorter ones are sooner
complete, and must not be all that is learned from.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.replay.dealing import owners
from hpc_rl.replay.rows import MOVES
from hpc_rl.types import Array, Schema, Spec, Tree


class Episodes:
    """Complete episodes of ``columns`` that step together. An item's "noise" is that of the fragment it began in."""

    def __init__(self, name: str, schema: Schema, spec: Spec, columns: range) -> None:
        self.name, self.schema, self.stack, self.padding = name, schema, spec.stack, spec.padding
        self.moves = [name for name in schema if name in MOVES or name.startswith("extras/")]
        self.columns = columns
        self.running: list[list[Tree]] = [[] for _ in columns]  # parts of the episode that each column is in
        self.complete: list[Tree] = []
        self.following = np.full(len(columns), -1, np.int64)  # env step that continues each column
        self.inserted: list[Tree] = []

    def insert(self, tree: Tree) -> None:
        """Take a fragment of all columns; its moves are copied, the tree itself is kept for ``arrivals``."""
        self.inserted.append(tree)
        steps, ends_episode = len(tree["reward"]), tree["episode_length"] > 0
        for k, running in enumerate(self.running):
            if tree["first"][0, k] or tree["start"][k] != self.following[k]:
                running.clear()
            opens = np.flatnonzero(tree["first"][:-1, k])
            for begin in [*([0] if running else []), *opens]:
                ends = np.flatnonzero(ends_episode[begin:, k])
                stop = begin + int(ends[0]) + 1 if len(ends) else steps
                running.append(self._part(tree, k, int(begin), stop))
                if len(ends):
                    self._finish(running)
        self.following = tree["start"] + (~tree["first"][1:]).sum(0)

    def due(self) -> int:
        """1 once every column has a complete episode."""
        return int(len({int(episode["column"][0]) for episode in self.complete}) == len(self.running))

    def sample(self, update: int) -> Batches:
        """All complete episodes, [L(+1), n] for the longest of L moves; behind the others' end no row is valid."""
        episodes, self.complete = self.complete, []
        if not episodes:
            raise RuntimeError(f'no episode of "{self.name}" is complete; sample where ``due`` is above 0')
        lengths = [len(episode["reward"]) for episode in episodes]
        tree = {
            name: _padded([episode[name] for episode in episodes]) for name in [*self.moves, "observation", "first"]
        }
        tree["first"] |= np.arange(max(lengths) + 1)[:, None] > np.array(lengths)
        ends = [name for name in ("column", "start", "noise") if name in episodes[0]]
        tree |= {name: np.concatenate([episode[name] for episode in episodes]) for name in ends}
        return {self.name: ([tree], None)}

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Nothing: no episode is drawn twice."""

    def figures(self) -> dict[str, float]:
        return {}

    def arrivals(self) -> list[Tree]:
        return list(self.inserted)

    def release(self) -> None:
        self.inserted.clear()

    def state(self) -> StateDict:
        """Episodes that run, and those not used yet, as bytes: they may hold NaN that environments returned."""
        return {
            "column": np.array(self.columns, np.int32),
            "running": [[_bytes(part) for part in running] for running in self.running],
            "complete": [_bytes(episode) for episode in self.complete],
            "following": self.following.copy(),
        }

    def load(self, parts: list[StateDict]) -> None:
        """Take up the episodes of these columns, whatever ranks saved them. Raises ValueError where one is missing."""
        held = owners(parts, self.columns)
        self.running = [[self._from_bytes(x) for x in part["running"][k]] for part, k in held]
        self.following = np.array([int(part["following"][k]) for part, k in held], np.int64)
        episodes = [self._from_bytes(x) for part in parts for x in part["complete"]]
        self.complete = [episode for episode in episodes if int(episode["column"][0]) in self.columns]

    def _part(self, tree: Tree, k: int, begin: int, stop: int) -> Tree:
        """Copies of the moves begin..stop of column k, and of the rows around them; row 0 of an episode is padded."""
        part = {name: tree[name][begin:stop, k].copy() for name in self.moves}
        part["first"] = tree["first"][begin : stop + 1, k].copy()
        part["observation"] = tree["observation"][begin : stop + self.stack, k].copy()
        for name in ("column", "start", "noise"):
            if name in tree:
                part[name] = tree[name][k : k + 1].copy()
        if part["first"][0]:
            part["start"] += (~tree["first"][1 : begin + 1, k]).sum()
            frames = part["observation"]
            frames[: self.stack - 1] = frames[self.stack - 1] if self.padding == "repeat" else 0
        return part

    def _finish(self, parts: list[Tree]) -> None:
        """Make an episode of its parts, if it is of one version."""
        episode = dict(parts[0])
        for name in [*self.moves, "first", "observation"]:
            overlap = 0 if name in self.moves else self.stack if name == "observation" else 1  # rows of two parts
            heads = [part[name][: len(part[name]) - overlap] for part in parts[:-1]]
            episode[name] = np.concatenate([*heads, parts[-1][name]])
        parts.clear()
        if (episode["version"] == episode["version"][0]).all():
            self.complete.append(episode)

    def _from_bytes(self, saved: StateDict) -> Tree:
        return {name: np.asarray(x).copy().view(self.schema[name].dtype) for name, x in saved.items()}


def _padded(parts: list[Array]) -> Array:
    """Arrays [rows, …] side by side on the second axis, behind the shorter ones zeros."""
    out = np.zeros((max(len(x) for x in parts), len(parts), *parts[0].shape[1:]), parts[0].dtype)
    for k, x in enumerate(parts):
        out[: len(x), k] = x
    return out


def _bytes(tree: Tree) -> Tree:
    return {name: np.ascontiguousarray(x).view(np.uint8) for name, x in tree.items()}
