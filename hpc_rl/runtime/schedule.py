"""How far a run is along its annealed values, which never go back: also not where a resumed run has another budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc_rl.runtime.context import RankContext
from hpc_rl.types import Array


@dataclass(frozen=True)
class Schedule:
    """Progress rises in a straight line from ``reached`` at ``begin`` to 1 at ``budget``, both counted in ``unit``."""

    budget: int
    begin: int = 0
    reached: float = 0.0
    unit: str = "env_steps"  # or "updates"

    def progress(self, env_steps: int, updates: int) -> float:
        """In [0, 1]."""
        now = updates if self.unit == "updates" else env_steps
        if now >= self.budget:
            return 1.0
        return self.reached + (1.0 - self.reached) * ((now - self.begin) / (self.budget - self.begin))


def schedule(context: RankContext) -> Schedule:
    """The schedule of this attempt: by updates where the budget has any, else by env steps.

    A run that is resumed with another budget goes on from where its annealed values are, and spreads what is left of
    them over what is left.
    """
    budget, meta = context.job.budget, context.resume[1] if context.resume else {}
    unit, total = ("updates", budget.updates) if budget.updates else ("env_steps", budget.env_steps)
    kept: dict[str, Any] | None = meta.get("schedule")
    if kept is None:
        return Schedule(total, unit=unit)
    before = Schedule(**kept)
    if (total, unit) == (before.budget, before.unit):
        return before
    return Schedule(total, meta[unit], before.progress(meta["env_steps"], meta["updates"]), unit)


def exploration(context: RankContext, columns: Array, env_steps: int, updates: int) -> Array:
    """[b] what training passes to ``act`` in each of ``columns`` [b] after so many env steps and updates of the job."""
    total, progress = context.job.environment.columns, schedule(context).progress(env_steps, updates)
    return context.algorithm.exploration(context.config, columns, total, progress)
