"""Checkpoints of ranks that learn from others: a snapshot waits until its steps lie in closed segments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.roles.base import Seat
from hpc_rl.roles.saving import Saver
from hpc_rl.transport.waiting import Deadline
from hpc_rl.types import Array


@dataclass
class Pending:
    """A snapshot that becomes a checkpoint once its steps lie in closed segments of every column."""

    state: StateDict
    meta: dict[str, Any]
    seat: Seat
    asked: float = field(default_factory=time.monotonic)

    def covered(self, closed: Array) -> bool:
        """All columns have come that far. Raises Deadline, naming who has not, once that takes too long."""
        missing = {column for column, step in enumerate(self.meta["steps"].values()) if closed[column] < step}
        limit = self.seat.job.resources.deadline_s
        if missing and time.monotonic() - self.asked > limit:
            late = [f"rank {p.rank} ({p.name})" for p in self.seat.plan.places if not missing.isdisjoint(p.columns)]
            raise Deadline(f"waited {limit:.0f} s for {', '.join(late)} to close its segments; is that rank alive?")
        return not missing


@dataclass
class Snapshots:
    """One checkpoint at a time: snapshot, have others close the segments that it needs, then write it.

    A snapshot under way gives way to one alone that was judged better.
    """

    saver: Saver
    order: Callable[[int], None]  # tells everybody to close segments, for the k-th time
    rolls: int = 0
    pending: Pending | None = None
    closed: Array = field(init=False)  # [B] int64, env step up to which each column lies in closed segments

    def __post_init__(self) -> None:
        self.closed = np.zeros(self.saver.tally.columns, np.int64)

    def wanted(self) -> bool:
        """A checkpoint is due, or asked for by an evaluation."""
        return self.saver.asked or (self.pending is None and self.saver.due())

    def begin(self, state: StateDict | None) -> None:
        """Order segments closed; where there is a ``state``, it is written once they are."""
        self.saver.asked, self.rolls = False, self.rolls + 1
        if state is not None:
            self.pending = Pending(state, self.saver.meta(), self.saver.seat)
        self.order(self.rolls)

    def write(self) -> None:
        """Write the checkpoint under way if its segments are closed by now. Raises Deadline."""
        if self.pending is not None and self.pending.covered(self.closed):
            self.saver.save(self.pending.state, self.pending.meta)
            self.pending = None

    def finish(self, state: StateDict) -> None:
        """Write the last state, with all segments closed; before it the snapshot under way if that is the best."""
        under_way, self.pending, meta = self.pending, None, self.saver.meta()
        if under_way is not None and under_way.meta["updates"] < meta["updates"]:
            score = under_way.meta["score"]
            if score is not None and score > self.saver.marked:
                self.saver.save(under_way.state, under_way.meta)
        self.saver.save(state, meta, last=True)
