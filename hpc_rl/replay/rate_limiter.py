"""How many updates some experience allows, and how far it may run ahead of them.

Cassirer et al. 2021, Reverb, arXiv 2102.04736, section 3.4: samples per insert, a minimum size, and a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

from hpc_rl.experience import Experience


@dataclass(frozen=True)
class RateLimiter:
    """Keeps (env steps inserted − min_size) · samples_per_insert near updates · batch_size, never below it."""

    samples_per_insert: float  # items drawn per env step
    batch_size: int  # items per update
    min_size: float  # env steps before the first update
    tolerance: float = inf  # env steps that may be inserted beyond those that updates were made for

    def due(self, env_steps: float, updates: int) -> int:
        """Updates that may be made now, after ``updates``."""
        allowed = (env_steps - self.min_size) * self.samples_per_insert / self.batch_size
        return max(0, floor(allowed) - updates)

    def may_insert(self, env_steps: float, updates: int) -> bool:
        """Whether more experience may come now: ``env_steps`` are in, and ``updates`` were made."""
        used = self.min_size + updates * self.batch_size / self.samples_per_insert
        return env_steps - used < self.tolerance


def limiters(experience: Experience, min_size: float, tolerance: float = inf) -> list[RateLimiter]:
    """Of each kind of items; updates wait for all of them."""
    return [RateLimiter(items.samples_per_insert, items.batch_size, min_size, tolerance) for items in experience.items]
