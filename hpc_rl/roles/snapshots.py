"""Checkpoints under way: each is a copy of the state, written once its steps lie in closed segments.

A copy that is being judged is written only where it is the best so far: saved is the policy that was judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.roles.evaluation import Evaluation, weights_of
from hpc_rl.roles.pending import Pending
from hpc_rl.roles.saving import Saver
from hpc_rl.runtime.judge import Judgement
from hpc_rl.types import Array


@dataclass(frozen=True)
class Wanted:
    """The wishes of the rank that keeps the checkpoints; those of all others are none."""

    save: bool = False  # a checkpoint is due
    judge: bool = False  # an evaluation is due
    reached: bool = False  # the last one reached the target of the budget


@dataclass
class Snapshots:
    """One checkpoint at a time, and one policy that is being judged.

    ``order`` has the other ranks close their segments, for the k-th time. Without it all ranks close their own before
    they call `begin` together.
    """

    saver: Saver
    evaluation: Evaluation
    order: Callable[[int], None] | None = None
    rolls: int = 0
    pending: Pending | None = None
    judged: Pending | None = None  # under judgement
    best: Pending | None = None  # the best so far, not written yet
    asked: Wanted = Wanted()  # what the next copy is for
    closed: Array = field(init=False)  # [B] int64, env step up to which each column lies in closed segments

    def __post_init__(self) -> None:
        self.closed = np.zeros(self.saver.tally.columns, np.int64)

    def wanted(self) -> Wanted:
        """What is due now, by this rank alone: all but rank 0 want nothing."""
        if self.saver.seat.place.rank == 0:
            save = self.pending is None and self.saver.due()
            self.asked = Wanted(save, self.evaluation.due(), self.evaluation.reached)
        return self.asked

    def begin(self, state: StateDict | None) -> None:
        """Order segments closed; a ``state``, a copy that nobody changes, is what `wanted` asked for."""
        self.rolls += 1
        if state is not None:
            meta = self.saver.meta()
            if self.asked.save:
                self.pending = Pending(state, meta, self.saver.seat)
            if self.asked.judge:
                self._judge(state, meta)
        if self.order is not None:
            self.order(self.rolls)

    def write(self) -> None:
        """Once after every update: go on with the evaluation, write what is ready.

        Raises:
            Deadline: a rank does not close its segments, or the evaluator is silent.
        """
        if self.pending is not None and self._covered(self.pending):
            pending, self.pending = self.pending, None
            self.saver.save(pending.state, pending.meta)
        if (judgement := self.evaluation.step()) is not None:
            self._judged(judgement)
        if self.best is not None and self._covered(self.best):
            best, self.best = self.best, None
            self.saver.save_best(best.state, best.meta)

    def finish(self, state: StateDict, reason: str) -> None:
        """Write the last state, with all segments closed, and begin to judge it where that is due."""
        self.order, self.pending, meta = None, None, self.saver.meta()
        self.saver.save(state, meta, last=True)
        if self.best is not None:
            best, self.best = self.best, None
            self.saver.save_best(best.state, best.meta)
        if reason.startswith("done") and self.evaluation.due():
            self._judge(state, meta)

    def _covered(self, pending: Pending) -> bool:
        return self.order is None or pending.covered(self.closed)

    def _judge(self, state: StateDict, meta: dict[str, Any]) -> None:
        kept = {name: x for name, x in state.items() if name != "stores"}  # large, and no policy plays by it
        self.judged = Pending(kept, meta, self.saver.seat)
        self.evaluation.begin(weights_of(state))

    def _judged(self, judgement: Judgement) -> None:
        """Keep the policy that was judged where it is the best so far."""
        judged, self.judged, tally = self.judged, None, self.saver.tally
        score = judgement.score if math.isfinite(judgement.score) else -math.inf
        if judged is not None and score > tally.best:
            tally.best = score
            about = {"score": score, "best": score, "evaluated": score, "judged_at": judged.meta["env_steps"]}
            self.best = Pending(judged.state, {**judged.meta, **about}, judged.seat, judged.asked)
