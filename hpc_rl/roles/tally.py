"""Running figures: what was learned from, how fast, where the time went, and whether that is enough."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from hpc_rl.job import Job
from hpc_rl.roles.base import Seat
from hpc_rl.samplers.vector import Split
from hpc_rl.storage.metrics import Metrics
from hpc_rl.types import Array, Spec, Tree


@dataclass
class Tally:
    """Running figures of the whole job, kept where learning happens."""

    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    through: dict[int, int] = field(default_factory=dict)  # column -> env-step number learned from, exclusive
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    best: float = -np.inf
    evaluated: float | None = None  # mean return of the last evaluation
    steady: tuple[float, int] | None = None  # (time, env steps) once start-up is over

    def add(self, tree: Tree, version: int) -> None:
        """Book one fragment that was learned from at update ``version``."""
        valid = ~tree["first"][1:]
        self.env_steps += int(valid.sum())
        for column, start, moved in zip(tree["column"], tree["start"], valid.sum(0), strict=True):
            self.through[int(column)] = int(start + moved)
        self.finished(tree["episode_return"])
        self.lags.append(float(version - tree["version"].mean()))

    def finished(self, returns: Array) -> None:
        """Book the returns of whole games; NaN where none ended."""
        ended = returns[np.isfinite(returns)]
        self.episodes += ended.size
        self.recent.extend(float(x) for x in ended)

    @property
    def mean_return(self) -> float:
        """Mean raw return of the last 100 training episodes; NaN before the first."""
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def meta(self, seat: Seat) -> dict[str, Any]:
        """What a checkpoint says about itself besides the learner's state."""
        return {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "best": None if self.best == -np.inf else self.best,
            "steps": {str(column): step for column, step in sorted(self.through.items())},
            "attempt": seat.attempt,
            "fit": fit(seat.job, seat.spec),
        }

    def take_up(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's figures."""
        self.env_steps, self.updates, self.episodes = meta["env_steps"], meta["updates"], meta["episodes"]
        self.recent.extend(meta["recent"])
        self.through = {int(column): step for column, step in meta["steps"].items()}
        self.best = -np.inf if meta["best"] is None else meta["best"]


def fit(job: Job, spec: Spec) -> dict[str, Any]:
    """What a checkpoint must agree on with the job that takes it up."""
    return {
        "algorithm": job.algorithm,
        "environment": {"id": spec.id, "columns": job.environment.columns, "frame": list(spec.frame)},
        "stack": spec.stack,
        "actions": {"kind": spec.actions.kind, "sizes": list(spec.actions.sizes)},
        "hidden": list(job.method.get("hidden", [])),
    }


def reason_to_stop(seat: Seat, tally: Tally) -> str | None:
    """ "done …" when the job is complete, "stopped …" when it should be resumed later, None to go on."""
    budget = seat.job.budget
    if tally.env_steps >= budget.env_steps:
        return f"done: budget of {budget.env_steps} env steps used"
    if budget.stop_at_return is not None and len(tally.recent) == 100 and tally.mean_return >= budget.stop_at_return:
        return f"done: mean return of 100 episodes reached {tally.mean_return:.2f}"
    if budget.time_limit_s and time.monotonic() - seat.started > budget.time_limit_s:
        return f"stopped: time limit of {budget.time_limit_s:.0f} s"
    return "stopped: asked to stop" if seat.stop() else None


class Reporter:
    """Writes this rank's metric line every few seconds; shares of time are those since the last line."""

    def __init__(self, seat: Seat, split: Split) -> None:
        self.seat, self.split = seat, split
        self.metrics = Metrics(seat.run.metrics, seat.place.name, tensorboard=seat.place.rank == 0)
        self.process = psutil.Process(os.getpid())
        self.time, self.before, self.steps = time.monotonic(), dict(split.seconds), 0
        self.peak = 0

    def due(self) -> bool:
        return time.monotonic() - self.time >= self.seat.job.output.metrics_s

    def report(self, env_steps: int, values: dict[str, float]) -> None:
        """One line: ``env_steps`` of this rank, its rate, time split, memory, and ``values``."""
        now = time.monotonic()
        span = max(now - self.time, 1e-9)
        share = {f"time/{k}": (v - self.before[k]) / span for k, v in self.split.seconds.items()}
        share["time/other"] = max(0.0, 1 - sum(v for k, v in share.items() if k != "time/other"))
        rss = self.process.memory_info().rss
        self.peak = max(self.peak, rss)
        rate = (env_steps - self.steps) / span if self.steps else 0.0
        line = {"env_steps": env_steps, "env_steps_per_s": rate, "rss_bytes": rss, "peak_rss_bytes": self.peak}
        self.metrics.write(env_steps, {**line, **share, **values})
        self.time, self.before, self.steps = now, dict(self.split.seconds), env_steps

    def close(self) -> None:
        self.metrics.close()


def figures(tally: Tally) -> dict[str, float]:
    """The running figures that the screen shows."""
    lags = np.array(tally.lags or [0.0])
    return {
        "mean_return_100": tally.mean_return,
        "episodes": float(tally.episodes),
        "updates": float(tally.updates),
        "policy_lag": float(lags.mean()),
        "policy_lag_max": float(lags.max()),
    }
