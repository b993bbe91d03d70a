"""How far a run is along its annealed values, which never go back: also not where a resumed run has another budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_rl.settings import Budget


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


def schedule(budget: Budget, meta: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule of this attempt: by updates where the budget has any, else by env steps.

    ``meta`` is that of the checkpoint that a run is resumed from. With another budget the run goes on from where its
    annealed values are, and spreads what is left of them over what is left.
    """
    unit, total = ("updates", budget.updates) if budget.updates else ("env_steps", budget.env_steps)
    if meta is None or (saved := meta.get("schedule")) is None:
        return Schedule(total, unit=unit)
    before = Schedule(**saved)
    if (total, unit) == (before.budget, before.unit):
        return before
    return Schedule(total, meta[unit], before.progress(meta["env_steps"], meta["updates"]), unit)
