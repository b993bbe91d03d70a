"""How far a run is along its annealed values, which never go back: also not where a resumed run has another budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc_rl.roles.base import Seat
from hpc_rl.types import Array


@dataclass(frozen=True)
class Schedule:
    """Progress rises in a straight line from ``reached`` at env step ``begin`` to 1 at env step ``budget``."""

    budget: int
    begin: int = 0
    reached: float = 0.0

    def progress(self, env_steps: int) -> float:
        """In [0, 1]."""
        if env_steps >= self.budget:
            return 1.0
        return self.reached + (1.0 - self.reached) * ((env_steps - self.begin) / (self.budget - self.begin))


def schedule(seat: Seat) -> Schedule:
    """The schedule of this attempt.

    A run that is resumed with another budget goes on from where its annealed values are, and spreads what is left of
    them over the env steps that are left.
    """
    budget, meta = seat.job.budget.env_steps, seat.resume[1] if seat.resume else {}
    kept: dict[str, Any] | None = meta.get("schedule")
    if kept is None:
        return Schedule(budget)
    before = Schedule(**kept)
    if budget == before.budget:
        return before
    return Schedule(budget, meta["env_steps"], before.progress(meta["env_steps"]))


def exploration(seat: Seat, columns: Array, env_steps: int) -> Array:
    """[b] what training passes to ``act`` in each of ``columns`` [b] after ``env_steps`` of the job."""
    total, progress = seat.job.environment.columns, schedule(seat).progress(env_steps)
    return seat.algorithm.exploration(seat.config, columns, total, progress)
