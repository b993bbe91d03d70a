"""What every role starts from: its seat in the job, the running figures, and the reasons to stop."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from hpc_rl.algorithms.base import Algorithm, Policy, State
from hpc_rl.envs.base import Environment
from hpc_rl.job import Job
from hpc_rl.samplers.base import episode_seeds, streams
from hpc_rl.samplers.vector import Split, Vector
from hpc_rl.storage.metrics import Metrics
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.topologies.base import Place, Plan
from hpc_rl.transport.base import Ports
from hpc_rl.types import Array, Leaf, Schema, Spec, Tree, trajectory_schema


@dataclass
class Seat:
    """One rank's part of one attempt: everything that run.py decided before the role begins."""

    job: Job
    plan: Plan
    place: Place
    ports: Ports
    run: RunDir
    attempt: int
    token: str  # names this attempt's files in node-shared memory
    nodes: list[int]  # for each rank the lowest rank on its node
    device: str
    spec: Spec
    algorithm: Algorithm
    config: Any
    resume: tuple[State, dict[str, Any]] | None  # checkpoint to go on from
    stop: Callable[[], bool]  # a signal or the STOP file asks this rank to stop
    make_environment: Callable[[int, int], Environment]  # (columns, threads)
    make_policy: Callable[[], Policy]
    started: float = field(default_factory=time.monotonic)


class Kept:
    """Fraction of columns that are recorded, spread evenly over the job."""

    @staticmethod
    def mask(columns: Array, total: int, fraction: float) -> Array:
        """[b] bool; the same columns whatever rank holds them."""
        wanted = np.floor((np.arange(total) + 1) * fraction) > np.floor(np.arange(total) * fraction)
        kept: Array = wanted[columns]
        return kept


def schemas(policy: Policy, spec: Spec) -> tuple[Schema, Schema]:
    """(what is recorded, what is sent): messages also say how far each column's closed segments reach."""
    recorded = trajectory_schema(spec, policy.extras, policy.carry)
    closed = Leaf((), "int64", "fragment", "env step", "up to here the column lies in closed segments")
    return recorded, {**recorded, "closed": closed}


def sampler(seat: Seat, policy: Policy, split: Split, pulse: Callable[[], None], threads: int) -> Vector:
    """This rank's columns, each with its own streams; a resumed one goes on counting steps where the checkpoint ends."""
    columns, job = list(seat.place.columns), seat.job
    made = Vector(
        seat.make_environment(len(columns), threads),
        policy,
        columns,
        streams(job.seed, "act", columns, seat.attempt),
        split,
        pulse,
    )
    made.attempt = seat.attempt
    made.start(episode_seeds(job.seed, "episode", columns, seat.attempt))
    if seat.resume:
        steps = seat.resume[1]["steps"]
        made.steps = np.array([steps[str(column)] for column in columns], np.int64)
    return made


def recorder(seat: Seat, schema: Schema) -> Recorder:
    """Writer of this rank's trajectories."""
    columns, output = np.array(seat.place.columns, np.int32), seat.job.output
    return Recorder(
        seat.run.trajectories / f"a{seat.attempt}-{seat.place.name}",
        schema,
        seat.spec,
        columns,
        Kept.mask(columns, seat.job.environment.columns, output.record),
        seat.attempt,
        output.segment_bytes,
        output.segment_s,
        output.compression,
        {"job": seat.job.name, "environment": seat.job.environment.id, "seed": seat.job.seed},
    )


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
    """"done …" when the job is complete, "stopped …" when it should be resumed later, None to go on."""
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
