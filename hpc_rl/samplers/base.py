"""What samplers are to a role, where their time goes, and the random streams of their columns.

Streams are keyed by (purpose, environment column, attempt) and never by rank: layouts share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hpc_rl.types import Array, Tree

ACTIVITIES = ("step", "infer", "send", "wait", "learn", "record", "other")


class Sampler(Protocol):
    """Fills fragments with the moves of this rank's columns."""

    columns: Array  # [b] int32, global numbers

    @property
    def steps(self) -> Array:
        """[b] int64, env steps of each column so far, over all attempts."""
        ...

    def collect(self, tree: Tree, newest: Callable[[], int]) -> None:
        """Fill ``tree`` with T moves of some columns; ``newest`` loads fresh weights and gives their version."""
        ...

    def explore(self, exploration: Array) -> None:
        """Set the exploration [b] that each column acts with from now on."""
        ...

    def figures(self) -> dict[str, float]:
        """What this sampler adds to its rank's metrics."""
        ...

    def close(self) -> None: ...


@dataclass
class Timings:
    """Seconds this rank spent in each activity; the live screen and summary.json show their shares."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))

    def timed(self, name: str, begin: float) -> float:
        """Add the time since ``begin`` to ``name``; returns the present, the next begin."""
        now = time.perf_counter()
        self.seconds[name] += now - begin
        return now


EVALUATED_TOGETHER = 16  # columns of games that judge a policy are played at a time
PURPOSES = {"act": 1, "episode": 2, "evaluate": 3, "evaluate_act": 4, "report": 5, "report_act": 6, "replay": 7}


def streams(seed: int, purpose: str, columns: Sequence[int], attempt: int) -> list[np.random.Generator]:
    """One generator per global column."""
    keys = ((PURPOSES[purpose], column, attempt) for column in columns)
    return [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))) for key in keys]


def episode_seeds(seed: int, purpose: str, columns: Sequence[int], attempt: int) -> Array:
    """A 31-bit environment seed [b] for each column's first episode of this attempt."""
    return np.array([stream.integers(2**31 - 1) for stream in streams(seed, purpose, columns, attempt)], np.int64)
