"""Checkpoints of a run: when one is due, what it holds, which one is the best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hpc_rl.algorithms.base import Learner, State
from hpc_rl.roles.base import Seat
from hpc_rl.roles.tally import Tally
from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import NonFinite
from hpc_rl.transport.waiting import Deadline


class Superseded(RuntimeError):
    """The controller gave this attempt up, for its node was out of reach, and another one has begun."""


@dataclass
class Saver:
    """Writes checkpoints for one seat and remembers how long that blocked the learner."""

    seat: Seat
    last: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    written: int = 0
    asked: bool = False  # an evaluation was the best so far: keep the policy that was judged

    def due(self) -> bool:
        return self.asked or time.monotonic() - self.last >= self.seat.job.checkpoint.interval_s

    def save(self, state: State, tally: Tally, meta: dict[str, Any], last: bool = False) -> None:
        """Write, mark the best, prune. A state that is not finite is never written: warns, or raises if ``last``."""
        begin = time.monotonic()
        run = self.seat.run
        if (newest := run.read_state()["attempt"]) > self.seat.attempt:
            raise Superseded(f"attempt {newest} of {run.path} has begun; attempt {self.seat.attempt} writes no more")
        score, self.asked = meta["score"], False
        better = score is not None and score > tally.best
        if better:
            tally.best = meta["best"] = score
        try:
            path = checkpoint.save(run, meta["updates"], state, meta)
        except NonFinite as error:
            if last:
                raise
            print(f"warning: {error}", flush=True)
            return
        if better:
            checkpoint.mark_best(run, path, score)
        checkpoint.prune(run, self.seat.job.checkpoint.keep)
        run.write_state(
            state="running", env_steps=meta["env_steps"], updates=meta["updates"], attempt=self.seat.attempt
        )
        self.last, self.written = time.monotonic(), self.written + 1
        self.longest_s = self.seat.save_s = max(self.longest_s, self.last - begin)


def learner_state(learner: Learner) -> State:
    """The learner's part of a checkpoint: a copy, so that training may go on while it waits to be written."""
    return {"learner": learner.state()}


@dataclass
class Pending:
    """A snapshot that becomes a checkpoint once its steps lie in closed segments of every column."""

    state: State
    meta: dict[str, Any]
    seat: Seat
    asked: float = field(default_factory=time.monotonic)

    def covered(self, closed: dict[int, int]) -> bool:
        """All columns have come that far. Raises Deadline, naming who has not, once that takes too long."""
        missing = {int(column) for column, step in self.meta["steps"].items() if closed.get(int(column), 0) < step}
        limit = self.seat.job.resources.deadline_s
        if missing and time.monotonic() - self.asked > limit:
            late = [f"rank {p.rank} ({p.name})" for p in self.seat.plan.places if not missing.isdisjoint(p.columns)]
            raise Deadline(f"waited {limit:.0f} s for {', '.join(late)} to close its segments; is that rank alive?")
        return not missing


@dataclass
class Snapshots:
    """One checkpoint at a time: snapshot, have others close the segments that it needs, then write it."""

    saver: Saver
    order: Callable[[int], None]  # tells everybody to close segments, for the k-th time
    closed: dict[int, int] = field(default_factory=dict)  # column -> env step up to which it lies in closed segments
    rolls: int = 0
    pending: Pending | None = None

    def wanted(self) -> bool:
        """A checkpoint is due, or asked for by an evaluation."""
        return self.saver.asked or (self.pending is None and self.saver.due())

    def begin(self, tally: Tally, state: State | None) -> None:
        """Order segments closed; where there is a ``state``, it is written once they are."""
        self.saver.asked, self.rolls = False, self.rolls + 1
        if state is not None:
            self.pending = Pending(state, tally.meta(self.saver.seat), self.saver.seat)
        self.order(self.rolls)

    def write(self, tally: Tally) -> None:
        """Write the checkpoint under way if its segments are closed by now. Raises Deadline."""
        if self.pending is not None and self.pending.covered(self.closed):
            self.saver.save(self.pending.state, tally, self.pending.meta)
            self.pending = None
