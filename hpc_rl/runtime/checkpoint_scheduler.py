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
from hpc_rl.runtime.checkpoint_writer import CheckpointWriter
from hpc_rl.runtime.evaluation import Evaluation, weights_of
from hpc_rl.runtime.judge import Judgement
from hpc_rl.runtime.pending_checkpoint import PendingCheckpoint
from hpc_rl.types import Array


@dataclass(frozen=True)
class Due:
    """The wishes of the rank that keeps the checkpoints; those of all others are none."""

    save: bool = False  # a checkpoint is due
    judge: bool = False  # an evaluation is due
    reached: bool = False  # the last one reached the target of the budget


@dataclass
class CheckpointScheduler:
    """One checkpoint at a time, and one policy that is being judged.

    ``order`` has the other ranks close their segments, for the k-th time. Without it all ranks close their own before
    they call `begin` together.
    """

    writer: CheckpointWriter
    evaluation: Evaluation
    order: Callable[[int], None] | None = None
    rolls: int = 0
    pending: PendingCheckpoint | None = None
    judged: PendingCheckpoint | None = None  # under judgement
    best: PendingCheckpoint | None = None  # the best so far, not written yet
    asked: Due = Due()  # what the next copy is for
    closed: Array = field(init=False)  # [B] int64, env step up to which each column lies in closed segments

    def __post_init__(self) -> None:
        self.closed = np.zeros(self.writer.counters.columns, np.int64)

    def wanted(self) -> Due:
        """What is due now, by this rank alone: all but rank 0 want nothing."""
        if self.writer.context.rank_spec.rank == 0:
            save = self.pending is None and self.writer.due()
            self.asked = Due(save, self.evaluation.due(), self.evaluation.reached)
        return self.asked

    def begin(self, state: StateDict | None) -> None:
        """Order segments closed; a ``state``, a copy that nobody changes, is what `wanted` asked for."""
        self.rolls += 1
        if state is not None:
            meta = self.writer.meta()
            if self.asked.save:
                self.pending = PendingCheckpoint(state, meta, self.writer.context)
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
            self.writer.save(pending.state, pending.meta)
        if (judgement := self.evaluation.step()) is not None:
            self._judged(judgement)
        if self.best is not None and self._covered(self.best):
            best, self.best = self.best, None
            self.writer.save_best(best.state, best.meta)

    def finish(self, state: StateDict, reason: str) -> None:
        """Write the last state, with all segments closed, and begin to judge it where that is due."""
        self.order, self.pending, meta = None, None, self.writer.meta()
        self.writer.save(state, meta, last=True)
        if self.best is not None:
            best, self.best = self.best, None
            self.writer.save_best(best.state, best.meta)
        if reason.startswith("done") and self.evaluation.due():
            self._judge(state, meta)

    def _covered(self, pending: PendingCheckpoint) -> bool:
        return self.order is None or pending.covered(self.closed)

    def _judge(self, state: StateDict, meta: dict[str, Any]) -> None:
        kept = {name: x for name, x in state.items() if name != "stores"}  # large, and no policy plays by it
        self.judged = PendingCheckpoint(kept, meta, self.writer.context)
        self.evaluation.begin(weights_of(state))

    def _judged(self, judgement: Judgement) -> None:
        """Keep the policy that was judged where it is the best so far."""
        judged, self.judged, counters = self.judged, None, self.writer.counters
        score = judgement.score if math.isfinite(judgement.score) else -math.inf
        if judged is not None and score > counters.best:
            counters.best = score
            about = {"score": score, "best": score, "evaluated": score, "judged_at": judged.meta["env_steps"]}
            self.best = PendingCheckpoint(judged.state, {**judged.meta, **about}, judged.context, judged.asked)
