"""Random streams, keyed by (purpose, environment column, attempt) and never by rank: layouts share them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_rl.types import Array

PURPOSES = {"act": 1, "episode": 2, "evaluate": 3, "evaluate_act": 4}


def streams(seed: int, purpose: str, columns: Sequence[int], attempt: int) -> list[np.random.Generator]:
    """One generator per global column."""
    keys = ((PURPOSES[purpose], column, attempt) for column in columns)
    return [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))) for key in keys]


def episode_seeds(seed: int, purpose: str, columns: Sequence[int], attempt: int) -> Array:
    """A 31-bit environment seed [b] for each column's first episode of this attempt."""
    return np.array([stream.integers(2**31 - 1) for stream in streams(seed, purpose, columns, attempt)], np.int64)
