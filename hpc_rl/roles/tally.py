"""Running figures: what was learned from, how fast, where the time went, and whether that is enough."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hpc_rl.job import Job
from hpc_rl.roles.base import Seat
from hpc_rl.roles.fit import fit
from hpc_rl.roles.schedule import schedule
from hpc_rl.storage.run_dir import BUDGET_SPENT, OUT_OF_TIME
from hpc_rl.types import Array, Tree


@dataclass
class Tally:
    """Running figures of the whole job, kept where learning happens."""

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    through: dict[int, int] = field(default_factory=dict)  # column -> env-step number learned from, exclusive
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    bad_updates: int = 0  # in a row up to now, each with a step that was dropped or without any
    best: float = -np.inf  # score of the best checkpoint, written or under way
    evaluated: float | None = None  # mean return of the last evaluation
    judged: float | None = None  # the same where the policy has not changed since
    judged_at: int = 0  # env steps at the last evaluation
    steady: tuple[float, int] | None = None  # (time, env steps) once start-up is over
    latest: tuple[float, int] | None = None  # of the last update: what follows, draining and saving, is no training

    def add(self, tree: Tree, version: int) -> None:
        """Book one fragment that was learned from at update ``version``."""
        valid = ~tree["first"][1:]
        lag = float(version - tree["version"].mean())
        self.book(int(valid.sum()), tree["column"], tree["start"] + valid.sum(0), tree["episode_return"], lag)

    def book(self, moves: int, columns: Array, through: Array, returns: Array, lag: float) -> None:
        """``through`` [n]: how far each of ``columns`` [n] was learned from; ``returns``: NaN where no game ended."""
        self.env_steps += moves
        for column, step in zip(columns, through, strict=True):
            self.through[int(column)] = max(self.through.get(int(column), 0), int(step))
        self.lags.append(lag)
        ended = returns[np.isfinite(returns)]
        self.episodes += ended.size
        self.recent.extend(float(x) for x in ended)

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 training episodes; NaN before the first."""
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def score(self, job: Job) -> float | None:
        """What picks the best checkpoint: an evaluation of this very policy, else the mean of 100 games; None: no say.

        A job that asks for evaluations is judged by them alone.
        """
        if job.evaluate.every_steps:
            return self.judged
        return self.mean_return if len(self.recent) == 100 else None

    @staticmethod
    def scored_by(job: Job) -> str:
        """The games behind `score`."""
        if job.evaluate.every_steps:
            return f"the mean of {job.evaluate.episodes} greedy games during training"
        return "the mean of the last 100 training games, which sample actions"

    def meta(self, seat: Seat) -> dict[str, Any]:
        """What a checkpoint says about itself besides the learner's state."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "best": None if self.best == -np.inf else self.best,
            "score": self.score(seat.job),
            "scored_by": self.scored_by(seat.job),
            "evaluated": self.evaluated,
            "judged_at": self.judged_at,
            "schedule": asdict(schedule(seat)),
            "steps": {str(column): self.through.get(column, 0) for column in range(seat.job.environment.columns)},
            "attempt": seat.attempt,
            "fit": fit(seat.job, seat.spec),
        }

    def take_up(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's figures."""
        self.env_steps, self.updates, self.episodes = meta["env_steps"], meta["updates"], meta["episodes"]
        self.recent.extend(meta["recent"])
        self.through = {int(column): step for column, step in meta["steps"].items()}
        self.evaluated, self.judged_at = meta.get("evaluated"), meta.get("judged_at", self.env_steps)


def complete(job: Job, tally: Tally) -> str | None:
    """One sentence once the budget is used or the target reached; the same on every rank with the same tally."""
    budget = job.budget
    if tally.env_steps >= budget.env_steps:
        return f"done: budget of {budget.env_steps} env steps used"
    if budget.stop_at_return is not None and len(tally.recent) == 100 and tally.mean_return >= budget.stop_at_return:
        return f"done: mean return of 100 episodes reached {tally.mean_return:.2f}"
    return None


def reason_to_stop(seat: Seat, tally: Tally) -> str | None:
    """A sentence: "done …" when the job is complete, "stopped …" when it should be resumed later; None to go on."""
    if reason := complete(seat.job, tally):
        return reason
    budget = seat.job.budget
    if budget.time_limit_s and time.monotonic() - seat.started > budget.time_limit_s:
        return f"{BUDGET_SPENT} {budget.time_limit_s:.0f} s"
    if seat.out_of_time():
        return OUT_OF_TIME
    return "stopped: asked to stop" if seat.stop() else None
