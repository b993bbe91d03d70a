"""Samplers in this process: `vector` steps all columns together, `alternating` one half while it acts for the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.columns import chosen, merged
from hpc_rl.samplers.lanes import Lane, act
from hpc_rl.types import Array, Tree


class Vector:
    """Fills whole fragments, lane by lane in a fixed order: one lane is `vector`, two are `alternating`.

    Without lanes, on a rank without columns, there is nothing to fill.
    """

    def __init__(self, lanes: Sequence[Lane], timings: Timings, pulse: Callable[[], None] = lambda: None) -> None:
        self.lanes, self.timings, self.pulse = list(lanes), timings, pulse
        self.columns = np.concatenate([np.zeros(0, np.int32), *(lane.columns for lane in self.lanes)])
        edges = np.cumsum([0, *(len(lane.columns) for lane in self.lanes)])
        self.places = [slice(int(a), int(b)) for a, b in pairwise(edges)]

    @property
    def steps(self) -> Array:
        """[b] env steps of each column so far, over all attempts."""
        return np.concatenate([np.zeros(0, np.int64), *(lane.steps for lane in self.lanes)])

    def collect(self, tree: Tree, newest: Callable[[], int]) -> None:
        """Fill ``tree`` (leaves of `trajectory_schema`) with T moves of all columns, all by the same weights."""
        version = newest()
        for lane, place in zip(self.lanes, self.places, strict=True):
            lane.begin_fragment(_columns(tree, place))
            act([lane], version, self.timings)
        for _ in range(len(tree["reward"])):
            for lane in self.lanes:
                now = time.perf_counter()
                lane.receive()
                self.timings.timed("step", now)
                if not lane.full:
                    act([lane], version, self.timings)
            self.pulse()

    def explore(self, exploration: Array) -> None:
        """See `Sampler`."""
        for lane, place in zip(self.lanes, self.places, strict=True):
            lane.explore(exploration[place])

    def figures(self) -> dict[str, float]:
        """Rows so far that were not finite."""
        return {"bad_rows": float(sum(lane.bad_rows.count for lane in self.lanes))}

    def state(self) -> dict[str, Any]:
        """Everything `load` needs, per column; {} without any."""
        whole: dict[str, Any] = merged([lane.state() for lane in self.lanes]) if self.lanes else {}
        return whole

    def load(self, state: dict[str, Any]) -> None:
        """Take up these columns' part of a state, whatever rank or lane each belonged to."""
        row = {int(column): row for row, column in enumerate(state.get("columns", ()))}
        for lane in self.lanes:
            lane.load(chosen(state, [row[int(column)] for column in lane.columns]))

    def close(self) -> None:
        for lane in self.lanes:
            lane.environment.close()


def _columns(tree: Tree, place: slice) -> Tree:
    """Views of some columns of a fragment, whose leaves are [b], carry and noise [b, …] or [rows, b, …]."""
    flat = [name for name, x in tree.items() if x.ndim == 1 or name == "noise" or name.startswith("carry/")]
    return {name: x[place] if name in flat else x[:, place] for name, x in tree.items()}
