"""A copy of the state that waits to be written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.context import RankContext
from hpc_rl.transport.waiting import Deadline
from hpc_rl.types import Array


@dataclass
class PendingCheckpoint:
    """It becomes a checkpoint once its steps lie in closed segments of every column."""

    state: StateDict
    meta: dict[str, Any]
    context: RankContext
    asked: float = field(default_factory=time.monotonic)

    def covered(self, closed: Array) -> bool:
        """All columns have come that far. Raises Deadline, naming the ranks that have not, once that takes too long."""
        missing = {column for column, step in enumerate(self.meta["steps"].values()) if closed[column] < step}
        limit = self.context.job.resources.deadline_s
        if missing and time.monotonic() - self.asked > limit:
            late = [f"rank {p.rank} ({p.name})" for p in self.context.plan.ranks if not missing.isdisjoint(p.columns)]
            raise Deadline(f"waited {limit:.0f} s for {', '.join(late)} to close its segments; is that rank alive?")
        return not missing
