"""Random numbers of many searches at once: each has a seed of its own, so that none depends on its neighbours.

A seed's numbers are SplitMix64's (Steele et al. 2014, Fast Splittable Pseudorandom Number Generators).
"""

from __future__ import annotations

import numpy as np

from hpc_rl.types import Array

_GOLDEN, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def seed_of(u: Array) -> Array:
    """uint64 [n] of uniforms u [n]."""
    return (np.asarray(u, np.float64) * 2**53).astype(np.uint64)


def mixed(seed: Array, salt: Array | int) -> Array:
    """The seed [n] uint64 that follows from another and a number, as if drawn."""
    if isinstance(salt, int):
        z = seed + np.uint64((salt + 1) * _GOLDEN & _MASK)
    else:
        z = seed + (salt.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn: Array = z ^ (z >> np.uint64(31))
    return drawn


def uniforms(seed: Array, count: int) -> Array:
    """Standard uniforms [n, count] of seeds [n]."""
    return (mixed(seed[:, None], np.arange(count)) >> np.uint64(11)).astype(np.float64) / 2**53
