"""Checkpoints of a run: what they hold of a learner, when one is due, and the copies that wait to be written.

A checkpoint is a copy of the state, written once its steps lie in closed segments of every column, and its replay in
files of the ranks that hold it. A copy that is being judged is written only where it is the best so far: saved is the
policy that was judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Learner
from hpc_rl.devices import to_device
from hpc_rl.optim.flat import Optimizer, StateDict
from hpc_rl.optim.group import Group
from hpc_rl.patience import Patience
from hpc_rl.plan import Plan
from hpc_rl.runtime.context import Method
from hpc_rl.runtime.counters import Counters, Due, Limits
from hpc_rl.runtime.evaluation import Evaluation, Judgement
from hpc_rl.runtime.files import Resume, RunFiles
from hpc_rl.runtime.messages import FinalReport
from hpc_rl.settings import Job
from hpc_rl.transport.waiting import Deadline
from hpc_rl.types import Array, NonFinite


def optimizer_state(optimizer: Optimizer) -> StateDict:
    """A copy of the moments and counters; empty before the first step."""
    return {name: x.clone() for name, x in optimizer.state.items()}


def load_optimizer(optimizer: Optimizer, state: StateDict) -> None:
    """The inverse of ``optimizer_state``, of copies; an empty state is that of an optimiser which never stepped."""
    optimizer.state = {name: to_device(x.clone(), optimizer.flat.data.device) for name, x in state.items()}


def learner_state(learner: Learner) -> StateDict:
    """{"weights": [parameters], "learner": {"optimizers": …, "own": …}}: copies, alike on all learners of a group.

    Each optimiser has its moments, and its "parameters" where ``weights`` do not hold them.
    """
    optimizers = {name: optimizer_state(x) for name, x in learner.optimizers.items()}
    for name, x in learner.optimizers.items():
        if not x.flat.inside(learner.weights):
            optimizers[name]["parameters"] = x.flat.data.clone()
    return {"weights": learner.weights.data.clone(), "learner": {"optimizers": optimizers, "own": learner.state()}}


def load_learner(learner: Learner, state: StateDict) -> None:
    """The inverse of `learner_state`. Raises KeyError, ValueError, RuntimeError where the state is another method's."""
    learner.weights.data.copy_(state["weights"])
    for name, optimizer in learner.optimizers.items():
        moments = dict(state["learner"]["optimizers"][name])
        if not optimizer.flat.inside(learner.weights):
            optimizer.flat.data.copy_(moments.pop("parameters"))
        load_optimizer(optimizer, moments)
    learner.load(state["learner"]["own"])


def load_columns(learner: Learner, rows: Mapping[str, Tensor], columns: Collection[int]) -> None:
    """Give the learner the rows of those global ``columns`` that it learns from."""
    if rows:
        mask = torch.isin(rows["column"], to_device(torch.tensor(sorted(columns)), rows["column"].device))
        if mask.any():
            learner.load_columns({name: x[mask] for name, x in rows.items()})


def restored(
    method: Method, group: Group, resume: Resume, total: int, columns: Collection[int]
) -> tuple[Learner, Counters]:
    """A learner and the counters of ``total`` columns, as they were saved where the run is resumed.

    ``columns`` are those that it learns from.
    """
    policy = method.make_policy()
    if not resume:
        method.begin(policy)
    learner, counters = method.make_learner(policy, group), Counters(total)
    if resume:
        state, meta = resume
        load_learner(learner, state)
        load_columns(learner, state["columns"], columns)
        counters.restore(meta)
    return learner, counters


def joined_columns(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several learners as one set; those without any are passed over."""
    some = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in some]) for name in some[0]} if some else {}


@dataclass
class CheckpointWriter:
    """Writes checkpoints for one rank and remembers how long that blocked the learner.

    ``attempt`` is what every checkpoint of this attempt says of it: number, fingerprint, schedule.
    """

    counters: Counters
    files: RunFiles
    job: Job
    attempt: Mapping[str, Any]
    limits: Limits
    last: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    written: int = 0
    marked: float = -math.inf  # score of the best checkpoint on disk

    def __post_init__(self) -> None:
        self.marked = self.counters.best = self.files.best_score()

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.job.checkpoint.interval_s

    def meta(self) -> dict[str, Any]:
        """What a checkpoint that is taken now says of itself. If it is the best, later ones must beat it already."""
        score = self.counters.score(self.job)
        self.counters.best = max(self.counters.best, -math.inf if score is None else score)
        return self.counters.meta(self.job, self.attempt)

    def held(self, begin: float) -> None:
        """Note that a checkpoint has held the learner up since then."""
        self.longest_s = max(self.longest_s, time.monotonic() - begin)

    def save(self, state: StateDict, meta: dict[str, Any], begun: float, last: bool = False) -> None:
        """Write, mark the best, prune. A state that is not finite is never written: warns, or raises if ``last``.

        ``begun`` is when the copy was taken: to leave in time, a rank must begin as long before.
        """
        begin, score = time.monotonic(), meta["score"]
        best = score is not None and score > self.marked
        try:
            self.files.save_checkpoint(state, meta, best)
        except NonFinite as error:
            if last:
                raise
            print(f"warning: {error}", flush=True)
            self.counters.best, self.last = self.marked, time.monotonic()  # the next try comes after the usual interval
            return
        self.marked = score if best else self.marked
        self.last, self.written = time.monotonic(), self.written + 1
        self.limits.save_s = max(self.limits.save_s, self.last - begun)
        self.held(begin)

    def save_best(self, state: StateDict, meta: dict[str, Any]) -> None:
        """Write a policy that was judged, while the run has gone on; one that is not finite is warned of."""
        try:
            self.files.save_best(state, meta)
            self.marked = meta["score"]
        except NonFinite as error:
            print(f"warning: {error}", flush=True)
            self.counters.best = self.marked


@dataclass
class PendingCheckpoint:
    """A copy of the state that waits to be written."""

    state: StateDict
    meta: dict[str, Any]
    patience: Patience  # for columns that are to come as far
    begun: float = field(default_factory=time.monotonic)
    written: Callable[[], bool] = lambda: True  # its replay lies in files

    def missing(self, closed: Array) -> set[int]:
        """The columns whose steps do not lie in closed segments yet."""
        return {column for column, step in enumerate(self.meta["steps"].values()) if closed[column] < step}


@dataclass
class CheckpointScheduler:
    """One checkpoint at a time, and one policy that is being judged.

    ``chief`` is true on rank 0, which keeps them. ``order`` has the other ranks close their segments, for the k-th
    time, for a checkpoint or for a policy that is to be judged. Without it all ranks close their own before they call
    `begin` together.
    """

    writer: CheckpointWriter
    evaluation: Evaluation
    plan: Plan
    chief: bool
    order: Callable[[int, bool], None] | None = None
    lost: Callable[[], Collection[int]] = lambda: ()  # ranks that close no segments any more
    rolls: int = 0
    pending: PendingCheckpoint | None = None
    judged: PendingCheckpoint | None = None  # under judgement
    best: PendingCheckpoint | None = None  # the best so far, not written yet
    needs: Due = field(default_factory=Due)  # what the next copy is for
    closed: Array = field(init=False)  # [B] int64, env step up to which each column lies in closed segments

    def __post_init__(self) -> None:
        self.closed = np.zeros(self.writer.counters.columns, np.int64)

    def due(self) -> Due:
        """What is due now, by this rank alone: nothing on all but rank 0."""
        if self.chief:
            save = self.pending is None and self.writer.due()
            self.needs = Due(save, self.evaluation.due(), self.evaluation.reached)
        return self.needs

    def begin(self, take: Callable[[], StateDict | None]) -> None:
        """Order segments closed; a state that ``take`` copies, if any, is what `due` called for."""
        begin, state = time.monotonic(), take()
        self.rolls += 1
        if state is not None:
            self.writer.held(begin)
            meta = self.writer.meta()
            if self.needs.save:
                self.pending = self._pending(state, meta)
            if self.needs.judge:
                self._judge(state, meta)
        if self.order is not None:
            self.order(self.rolls, self.needs.save)

    def write(self) -> None:
        """Once after every update: go on with the evaluation, write what is ready.

        Raises:
            Deadline: a rank does not close its segments, or the evaluator is silent.
        """
        if self.pending is not None and self._covered(self.pending):
            pending, self.pending = self.pending, None
            self.writer.save(pending.state, pending.meta, pending.begun)
        if (judgement := self.evaluation.step()) is not None:
            self._judged(judgement)
        if self.best is not None and self._covered(self.best):
            best, self.best = self.best, None
            self.writer.save_best(best.state, best.meta)

    def finish(self, state: StateDict, reason: str) -> None:
        """Write the last state, with all segments closed, and begin to judge it where that is due."""
        self.order, self.pending, meta = None, None, self.writer.meta()
        pending = self._pending(state, meta)
        while not self._covered(pending):
            time.sleep(0.01)
        self.writer.save(state, meta, pending.begun, last=True)
        if self.best is not None:
            best, self.best = self.best, None
            self.writer.save_best(best.state, best.meta)
        if reason.startswith("done") and self.evaluation.due():
            self._judge(state, meta)

    def _covered(self, pending: PendingCheckpoint) -> bool:
        """All columns have come that far, and its replay is written. Raises Deadline once that takes too long."""
        self._clip(pending.meta)
        uncovered = pending.missing(self.closed) if self.order is not None else set()
        if uncovered and pending.patience.over():
            limit = pending.patience.limit_s
            late = [f"rank {p.rank} ({p.name})" for p in self.plan.ranks if not uncovered.isdisjoint(p.columns)]
            raise Deadline(f"waited {limit:.0f} s for {', '.join(late)} to close its segments; is that rank alive?")
        return not uncovered and pending.written()

    def _pending(self, state: StateDict, meta: dict[str, Any]) -> PendingCheckpoint:
        return PendingCheckpoint(state, meta, self._patience(), written=self.writer.files.replay_written(state))

    def _patience(self) -> Patience:
        return Patience(self.writer.job.resources.deadline_s)

    def _clip(self, meta: dict[str, Any]) -> None:
        """Steps of lost actors count as far as closed segments hold them: nobody closes their last ones."""
        for column in (column for rank in self.lost() for column in self.plan.ranks[rank].columns):
            meta["steps"][str(column)] = min(meta["steps"][str(column)], int(self.closed[column]))

    def _judge(self, state: StateDict, meta: dict[str, Any]) -> None:
        judged_state = {name: x for name, x in state.items() if name != "stores"}  # large, and no policy plays by it
        self.judged = PendingCheckpoint(judged_state, meta, self._patience())
        self.evaluation.begin(state["weights"])  # what is judged is what is saved

    def _judged(self, judgement: Judgement) -> None:
        """Keep the policy that was judged where it is the best so far."""
        judged, self.judged, counters = self.judged, None, self.writer.counters
        score = judgement.score if math.isfinite(judgement.score) else -math.inf
        if judged is not None and score > counters.best:
            counters.best = score
            about = {"score": score, "best": score, "evaluated": score, "judged_at": judged.meta["env_steps"]}
            about["judged_update"] = judged.meta["updates"]
            self.best = PendingCheckpoint(judged.state, {**judged.meta, **about}, judged.patience, judged.begun)


@dataclass(frozen=True)
class Outcome:
    """What a role returns on rank 0: its last state is written, and all other ranks have done their work."""

    reason: str
    state: StateDict
    counters: Counters
    scheduler: CheckpointScheduler
    own: FinalReport
    reports: Sequence[FinalReport]  # of the other ranks, and of an inference server in this process
