"""What a ring knows of one kind of its items: where they begin, how long they are, how often they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpc_rl.experience import Experience, Items
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.priorities import Priorities
from hpc_rl.replay.rate_limiter import RateLimiter
from hpc_rl.replay.relabel import Relabelling
from hpc_rl.types import Array, Tree


@dataclass
class Kind:
    """A ring's bookkeeping for one kind of items."""

    items: Items
    batch: int  # items per update of this shard
    lengths: Array  # [slots, b] int32, moves of the complete item that begins there, else 0
    limiter: RateLimiter
    priorities: Priorities | None = None  # where alpha > 0
    relabelling: Relabelling | None = None
    checked: int = 0  # whether an item begins, and how long it is, is decided for all rows before
    count: int = 0  # complete items
    notes: Tree = field(default_factory=dict)  # name -> [slots, b], what ``annotate`` returned for each

    def state(self) -> StateDict:
        """Copies of all that follows from more than the rows."""
        return {
            "lengths": self.lengths.copy(),
            "checked": self.checked,
            "notes": {name: x.copy() for name, x in self.notes.items()},
            "priorities": self.priorities.state() if self.priorities else {},
        }

    def load(self, saved: StateDict) -> None:
        """The inverse of ``state``. Raises ValueError where it is of another capacity."""
        self.lengths[:] = np.asarray(saved["lengths"])
        self.checked, self.count = int(saved["checked"]), int(np.count_nonzero(self.lengths))
        self.notes = {name: np.asarray(x).copy() for name, x in saved["notes"].items()}
        if self.priorities:
            self.priorities.load(saved["priorities"])


def kind_of(
    items: Items, batch: int, slots: int, width: int, experience: Experience, relabelling: Relabelling | None
) -> Kind:
    """Of a ring that is empty."""
    limiter = RateLimiter(items.samples_per_insert, items.batch_size, experience.min_size)
    priorities = Priorities(items.name, items.alpha, slots, width) if items.alpha else None
    return Kind(items, batch, np.zeros((slots, width), np.int32), limiter, priorities, relabelling)
