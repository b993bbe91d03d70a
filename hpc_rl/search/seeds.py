"""Random numbers of many searches at once: each has a seed of its own, so that none depends on its neighbours.

A seed's numbers are those of formulas/counter_hash.py.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.formulas.counter_hash import following, unit
from hpc_rl.types import Array


def seed_of(u: Array) -> Array:
    """uint64 [n] of uniforms u [n]."""
    return (np.asarray(u, np.float64) * 2**53).astype(np.uint64)


def mixed(seed: Array, salt: Array | int) -> Array:
    """The seed [n] uint64 that follows from another and a number, as if drawn."""
    number = salt if isinstance(salt, int) else salt.astype(np.int64)
    drawn: Array = following(seed.view(np.int64), number).view(np.uint64)
    return drawn


def uniforms(seed: Array, count: int) -> Array:
    """Standard uniforms [n, count] of seeds [n]."""
    drawn: Array = unit(np, mixed(seed[:, None], np.arange(count)).view(np.int64), double=True)
    return drawn
