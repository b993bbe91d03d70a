"""Training counters: env steps, updates, episode returns, policy lag; the stopping criteria; and the votes of a group.

Ranks that learn together reduce counters and votes in one all-reduce, so that all of them stop and save at the same
update.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from hpc_rl.devices import to_device, to_host
from hpc_rl.optim.group import Group
from hpc_rl.plan import Plan
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME, Job
from hpc_rl.types import Array, Tree

RECENT = 100  # training episodes whose mean return is reported
WARM_UP_S = 20.0  # of a run is left out of the steady rate
LEAST_LEAD_S = 20.0  # before the end of the allocation; SLURM's signal usually comes long before


@dataclass
class Limits:
    """What ends an attempt besides its budget: the job's time limit, the end of the allocation, a request to stop."""

    requested: Callable[[], bool]  # a signal or the STOP file asks this rank to stop
    time_limit_s: float = 0.0  # of this attempt; 0 is none
    end_s: float | None = None  # unix time at which the allocation ends
    started: float = field(default_factory=time.monotonic)
    save_s: float = 0.0  # the longest checkpoint so far
    why: str = "stopped: asked to stop"  # the sentence where it was requested

    def late(self) -> bool:
        """The job's own time limit is over."""
        return bool(self.time_limit_s) and time.monotonic() - self.started > self.time_limit_s

    def out_of_time(self) -> bool:
        """The allocation leaves just enough time to save and leave."""
        return self.end_s is not None and time.time() > self.end_s - max(LEAST_LEAD_S, 3 * self.save_s)

    def reached(self) -> bool:
        """Any of the three."""
        return self.requested() or self.out_of_time() or self.late()

    def time_limit(self) -> str:
        """The sentence where the job's time limit ended the attempt."""
        return f"{BUDGET_SPENT} {self.time_limit_s:.0f} s"


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
    judged_update: int = 0  # and updates
    greedy: dict[str, float] = field(default_factory=dict)  # its figures
    reached: bool = False  # the last evaluation reached the budget's target; known to all learners alike
    steady: tuple[float, int] | None = None  # (time, env steps) once start-up is over
    latest: tuple[float, int] | None = None  # of the last update: what follows, draining and saving, is no training

    def __post_init__(self) -> None:
        self.through = np.zeros(self.columns, np.int64)

    def add(self, tree: Tree, version: int) -> None:
        """Count one fragment that was learned from at update ``version``."""
        moves = env_steps_of(tree)
        lag = float(version - _acting_version(tree).mean())
        self.count(int(moves.sum()), tree["column"], tree["start"] + moves, lag)
        episodes, last = ended(tree)
        self.ended(episodes, last[:, 2])

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

    def training(self) -> str:
        """What stands beside a figure of greedy games."""
        return f"; the last {len(self.recent)} training games: {self.mean_return:.2f}" if self.recent else ""

    def score(self, job: Job) -> float | None:
        """What picks the best checkpoint now: the mean of 100 training games; None: no say.

        A job that asks for evaluations is judged by them alone, each policy later than now: checkpoints.py.
        """
        if job.evaluate.periodic:
            return None
        return self.mean_return if len(self.recent) == RECENT else None

    @staticmethod
    def scored_by(job: Job) -> str:
        """The games behind `score`."""
        if job.evaluate.periodic:
            return f"the mean of {job.evaluate.episodes} greedy games during training"
        return "the mean of the last 100 training games, which sample actions"

    def meta(self, job: Job, attempt: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint says about itself besides the learner's state; ``attempt`` is what never changes of it."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "best": None if self.best == -np.inf else self.best,
            "score": self.score(job),
            "scored_by": self.scored_by(job),
            "evaluated": self.evaluated,
            "judged_at": self.judged_at,
            "judged_update": self.judged_update,
            "steps": {str(column): step for column, step in enumerate(self.through.tolist())},
            **attempt,
        }

    def restore(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's figures."""
        self.env_steps, self.updates, self.episodes = meta["env_steps"], meta["updates"], meta["episodes"]
        self.recent.extend(meta["recent"])
        for column, step in meta["steps"].items():
            self.through[int(column)] = step
        self.evaluated, self.judged_at = meta.get("evaluated"), meta.get("judged_at", self.env_steps)
        self.judged_update = meta.get("judged_update", self.updates)

    def mark_steady(self, started: float) -> None:
        """Mark this update: the steady rate is counted from the first after the warm-up to the last."""
        self.latest = (time.monotonic(), self.env_steps)
        if self.steady is None and self.latest[0] - started > WARM_UP_S:
            self.steady = self.latest

    def figures(self) -> dict[str, float]:
        """The running figures that the screen shows."""
        lags = np.array(self.lags or [0.0])
        return {
            "mean_return_100": self.mean_return,
            "episodes": float(self.episodes),
            "updates": float(self.updates),
            "policy_lag": float(lags.mean()),
            "policy_lag_max": float(lags.max()),
            **self.greedy,
        }


def ended(tree: Tree) -> tuple[int, Array]:
    """How many episodes ended in a fragment; of the last `RECENT` [n, 3] float64: row t, column, raw return."""
    t, k = np.nonzero(np.isfinite(tree["episode_return"]))
    episodes, t, k = len(t), t[-RECENT:], k[-RECENT:]
    return episodes, np.stack([t, k, tree["episode_return"][t, k]], 1).astype(float)


def complete(job: Job, counters: Counters) -> str | None:
    """One sentence once the budget is used or the target reached; the same on every rank with the same counters."""
    budget = job.budget
    if counters.env_steps >= budget.env_steps:
        return f"done: budget of {budget.env_steps} env steps used"
    if budget.updates and counters.updates >= budget.updates:
        return f"done: budget of {budget.updates} updates used"
    if budget.stop_at_return is None:
        return None
    if job.evaluate.periodic:
        score = "" if counters.evaluated is None else f", with {counters.evaluated:.2f}"  # only rank 0 has it
        sentence = f"done: greedy games reached a mean return of {budget.stop_at_return:g}{score}"
        return sentence + counters.training() if counters.reached else None
    if len(counters.recent) == RECENT and counters.mean_return >= budget.stop_at_return:
        return f"done: mean return of 100 episodes reached {counters.mean_return:.2f}"
    return None


def reason_to_stop(job: Job, counters: Counters, limits: Limits) -> str | None:
    """A sentence: "done …" when the job is complete, "stopped …" when it should be resumed later; None to go on."""
    if reason := complete(job, counters):
        return reason
    if limits.late():
        return limits.time_limit()
    if limits.out_of_time():
        return OUT_OF_TIME
    return limits.why if limits.requested() else None


@dataclass(frozen=True)
class Due:
    """What the rank that keeps the checkpoints has to do now; nothing on all others."""

    save: bool = False  # a checkpoint is due
    judge: bool = False  # an evaluation is due
    reached: bool = False  # the last one reached the target of the budget


@dataclass(frozen=True)
class Votes:
    """The same on every rank; clocks and signals differ between ranks, so they are reduced and never read alone."""

    stop: str | None
    save: bool  # a checkpoint is to be written
    judge: bool  # a policy is to be judged
    closed: Array  # [B] int64, env step up to which each column lies in closed segments


def reduce_counters(
    group: Group, counters: Counters, trees: Sequence[Tree], plan: Plan, limits: Limits, due: Due, version: int
) -> Votes:
    """Add every learner's counters to ``counters`` and reduce the votes to stop, save and judge, in one all-reduce.

    ``trees`` were learned from at update ``version``. Its size depends on columns and ranks and not on T: every member
    fills its own block of columns and its own rows of ended episodes, so that a sum puts them side by side, in the same
    order for any layout. Of the episodes that ended only the last `RECENT` matter.
    """
    share, moves = plan.learning_columns, np.concatenate([env_steps_of(tree) for tree in trees])
    columns_of_rank = slice(group.rank * share, group.rank * share + len(moves))  # none of a rank without columns
    heads, games = np.zeros((5, plan.batch_columns)), np.zeros((group.size, min(RECENT, plan.steps * share), 3))
    heads[0, columns_of_rank], heads[1, columns_of_rank] = _together(trees, "column"), moves
    heads[2, columns_of_rank] = _together(trees, "start") + moves
    heads[3, columns_of_rank] = version - np.concatenate([_acting_version(tree) for tree in trees])
    heads[4, columns_of_rank] = _together(trees, "closed") if "closed" in trees[0] else 0
    episodes = _fill(games[group.rank], trees, group.rank * share)
    votes = np.array([episodes, *votes_of(limits, due)], float)
    reduced = to_host(group.sum(to_device(np.concatenate([heads.ravel(), games.ravel(), votes]), "cpu")))
    columns, moves, through, lags, closed = reduced[: heads.size].reshape(heads.shape)
    order = columns.astype(np.int64)
    counters.count(int(moves.sum()), order, through.astype(np.int64), float(lags.mean()) if lags.size else 0.0)
    counters.ended(int(reduced[-7]), _in_order(reduced[heads.size : -7].reshape(-1, 3)))
    reached = np.zeros(counters.columns, np.int64)
    reached[order] = closed
    return decided(reduced[-6:], counters, limits, reached)


def votes_of(limits: Limits, due: Due) -> list[bool]:
    """This rank's part of the sum that `decided` reads."""
    return [limits.requested(), limits.late(), limits.out_of_time(), *astuple(due)]


def decided(votes: Array, counters: Counters, limits: Limits, closed: Array) -> Votes:
    """The same on every rank, from the summed votes [6]."""
    stop_requested, late, over, save, judge, counters.reached = (bool(x) for x in votes > 0)
    stop = limits.why if stop_requested else limits.time_limit() if late else None
    return Votes(OUT_OF_TIME if over else stop, save, judge, closed)


def _together(trees: Sequence[Tree], name: str) -> Array:
    """A number per column of all fragments side by side, [b]."""
    return np.concatenate([tree[name] for tree in trees])


def env_steps_of(tree: Tree) -> Array:
    """[b] valid moves of a fragment."""
    episodes: Array = np.add.reduce(tree["first"][1:], 0, np.int32)
    return len(tree["first"]) - 1 - episodes


def _acting_version(tree: Tree) -> Array:
    """[b] the mean version of the weights that acted; most fragments have one for all their moves."""
    version = tree["version"]
    constant = np.array_equal(version[0], version[-1])  # versions only grow
    mean: Array = version[0] if constant else version.mean(0)
    return mean


def _fill(rows: Array, trees: Sequence[Tree], low: int) -> int:
    """The last episodes that ended go into ``rows`` [n, 3]: 1 + row t, place in the batch, return. How many ended."""
    places = np.cumsum([low, *(len(tree["column"]) for tree in trees)])
    counts, tables = zip(*(ended(tree) for tree in trees), strict=True)
    shifted = [table + np.array([1, place, 0]) for table, place in zip(tables, places, strict=False)]
    last = _sorted(np.concatenate(shifted))[-len(rows) :]
    rows[: len(last)] = last
    return sum(counts)


def _sorted(table: Array) -> Array:
    """Rows (t, place, return) by time, then place."""
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def _in_order(table: Array) -> Array:
    """The returns [n] of all members' rows, those that hold an episode, by time and then place in the batch."""
    return _sorted(table[table[:, 0] > 0])[:, 2]
