"""Training counters: env steps, updates, episode returns, policy lag; and the stopping criteria."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.runtime.schedule import schedule
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME, Job
from hpc_rl.types import Array, Tree

RECENT = 100  # training episodes whose mean return is reported


@dataclass
class Counters:
    """Counters of the whole job, kept where learning happens. ``columns`` is B of the job."""

    columns: int
    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    through: Array = field(init=False)  # [B] int64, each column's env-step number learned from, exclusive
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    bad_updates: int = 0  # in a row up to now, each with a step that was dropped or without any
    best: float = -np.inf  # score of the best checkpoint, written or under way
    evaluated: float | None = None  # mean return of the last evaluation
    judged_at: int = 0  # env steps behind the policy of the last evaluation
    greedy: dict[str, float] = field(default_factory=dict)  # its figures
    reached: bool = False  # the last evaluation reached the budget's target; known to all learners alike
    steady: tuple[float, int] | None = None  # (time, env steps) once start-up is over
    latest: tuple[float, int] | None = None  # of the last update: what follows, draining and saving, is no training

    def __post_init__(self) -> None:
        self.through = np.zeros(self.columns, np.int64)

    def add(self, tree: Tree, version: int) -> None:
        """Count one fragment that was learned from at update ``version``."""
        moves = (~tree["first"][1:]).sum(0)
        self.count(int(moves.sum()), tree["column"], tree["start"] + moves, float(version - tree["version"].mean()))
        table = ended(tree)
        self.ended(len(table), table[:, 2])

    def count(self, moves: int, columns: Array, through: Array, lag: float) -> None:
        """``through`` [n]: how far each of ``columns`` [n] was learned from; ``lag`` in updates."""
        self.env_steps += moves
        np.maximum.at(self.through, columns, through)
        self.lags.append(lag)

    def ended(self, episodes: int, returns: Array) -> None:
        """``returns``: those of the last of the ``episodes`` that ended, at least `RECENT` of them or all."""
        self.episodes += episodes
        self.recent.extend(float(x) for x in returns[-RECENT:])

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 training episodes; NaN before the first."""
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def score(self, job: Job) -> float | None:
        """What picks the best checkpoint now: the mean of 100 training games; None: no say.

        A job that asks for evaluations is judged by them alone, each policy later than now: scheduler.py.
        """
        if job.evaluate.every_steps:
            return None
        return self.mean_return if len(self.recent) == RECENT else None

    @staticmethod
    def scored_by(job: Job) -> str:
        """The games behind `score`."""
        if job.evaluate.every_steps:
            return f"the mean of {job.evaluate.episodes} greedy games during training"
        return "the mean of the last 100 training games, which sample actions"

    def meta(self, context: RankContext) -> dict[str, Any]:
        """What a checkpoint says about itself besides the learner's state."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "best": None if self.best == -np.inf else self.best,
            "score": self.score(context.job),
            "scored_by": self.scored_by(context.job),
            "evaluated": self.evaluated,
            "judged_at": self.judged_at,
            "schedule": asdict(schedule(context)),
            "steps": {str(column): step for column, step in enumerate(self.through.tolist())},
            "attempt": context.attempt,
            "fingerprint": fingerprint(context.job, context.spec),
        }

    def restore(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's figures."""
        self.env_steps, self.updates, self.episodes = meta["env_steps"], meta["updates"], meta["episodes"]
        self.recent.extend(meta["recent"])
        for column, step in meta["steps"].items():
            self.through[int(column)] = step
        self.evaluated, self.judged_at = meta.get("evaluated"), meta.get("judged_at", self.env_steps)


def ended(tree: Tree) -> Array:
    """[n, 3] float64 (row t, column of the fragment, raw return) of the episodes that ended in it, in that order."""
    t, k = np.nonzero(np.isfinite(tree["episode_return"]))
    return np.stack([t, k, tree["episode_return"][t, k]], 1).astype(float)


def complete(job: Job, counters: Counters) -> str | None:
    """One sentence once the budget is used or the target reached; the same on every rank with the same counters."""
    budget = job.budget
    if counters.env_steps >= budget.env_steps:
        return f"done: budget of {budget.env_steps} env steps used"
    if budget.updates and counters.updates >= budget.updates:
        return f"done: budget of {budget.updates} updates used"
    if budget.stop_at_return is None:
        return None
    if job.evaluate.every_steps:
        score = "" if counters.evaluated is None else f", with {counters.evaluated:.2f}"  # only rank 0 has it
        sentence = f"done: greedy games reached a mean return of {budget.stop_at_return:g}{score}"
        return sentence if counters.reached else None
    if len(counters.recent) == RECENT and counters.mean_return >= budget.stop_at_return:
        return f"done: mean return of 100 episodes reached {counters.mean_return:.2f}"
    return None


def reason_to_stop(context: RankContext, counters: Counters) -> str | None:
    """A sentence: "done …" when the job is complete, "stopped …" when it should be resumed later; None to go on."""
    if reason := complete(context.job, counters):
        return reason
    budget = context.job.budget
    if budget.time_limit_s and time.monotonic() - context.started > budget.time_limit_s:
        return f"{BUDGET_SPENT} {budget.time_limit_s:.0f} s"
    if context.out_of_time():
        return OUT_OF_TIME
    return "stopped: asked to stop" if context.stop() else None
