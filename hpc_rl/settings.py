"""The values of a job, section by section, with their defaults, ranges and units. job.py reads and writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range

OUT_OF_TIME = "stopped: the allocation ends"  # the reason where the ranks saw by the clock that its end is near
BUDGET_SPENT = "stopped: time limit of"  # how a reason begins when the job's own time limit ended it


@dataclass(frozen=True)
class EnvironmentConfig:
    id: str = ""  # Gymnasium id, ALE/<Game>-v5, toy/<name> or my_package.my_module:make
    columns: PositiveInt = 8  # B, environments over all ranks
    processes: NonNegativeInt = 0  # child processes that share the columns of a rank; 0 steps them in the rank itself
    arguments: dict[str, Any] = field(default_factory=dict)  # for the environment's constructor


@dataclass(frozen=True)
class Budget:
    env_steps: PositiveInt = 1_000_000  # valid moves over all columns
    updates: NonNegativeInt = 0  # a second budget, over which annealed values then fall; 0 is none
    time_limit_s: NonNegative = 0.0  # of one attempt; 0 is none
    # End once the mean raw return reaches this: of the greedy games where evaluate.every_steps > 0, else of the last
    # 100 training games.
    stop_at_return: float | None = None

    def left(self, env_steps: int, updates: int) -> float:
        """Env steps until the first of both budgets is used, at the present number of env steps per update."""
        by_updates = (self.updates - updates) * env_steps / updates if self.updates and updates else math.inf
        return max(0.0, min(self.env_steps - env_steps, by_updates))


@dataclass(frozen=True)
class Resources:
    ranks: PositiveInt = 1  # MPI ranks
    learners: PositiveInt = 1  # of actor_learner
    servers: PositiveInt = 1  # parameter servers, or actors that answer environment workers
    inference: Literal["learner", "actor"] = "learner"  # what answers environment workers of the central sampler
    evaluators: Annotated[int, Range(0, 1)] = 0  # ranks that play the evaluations; 0: rank 0 does, between its updates
    quorum: NonNegativeInt = 0  # gradients that make one update of a parameter server; 0 applies each as it comes
    threads: NonNegativeInt = 0  # CPU threads of a learning rank; 0 shares the affinity mask
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the torso; auto is what is faster on each processor
    precisions: dict[str, Literal["fp32", "bf16"]] = field(
        default_factory=dict, hash=False
    )  # what auto chose, by processor; written at the start
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reduction: Literal["mpi", "gloo", "nccl"] = "mpi"  # what sums the gradients of several learners
    deadline_s: Positive = 120.0  # longest wait for another rank


@dataclass(frozen=True)
class Output:
    record: Fraction = 1.0  # fraction of columns whose every step is written
    compression: Literal["zstd", "gzip", "none"] = "zstd"
    segment_bytes: PositiveInt = 268_435_456  # a segment is closed at this size
    segment_s: Positive = 600.0  # or at this age
    metrics_s: Positive = 2.0  # seconds between metric lines


@dataclass(frozen=True)
class Checkpoint:
    interval_s: Positive = 120.0
    keep: PositiveInt = 3  # newest ones, and the best


@dataclass(frozen=True)
class Evaluate:
    every_steps: NonNegativeInt = 0  # env steps; 0 never
    episodes: PositiveInt = 10  # of each set of arguments
    arguments: tuple[dict[str, Any], ...] = ()  # sets that override environment.arguments, each judged by itself


@dataclass(frozen=True)
class Job:
    name: str
    algorithm: str
    topology: str
    sampler: Literal["vector", "alternating", "central"] = "vector"
    schedule: Literal["free", "deterministic"] = "free"  # deterministic: repeatably, from the weights before the last
    seed: Annotated[int, Range(0, 2**31 - 1)] = 1
    environment: EnvironmentConfig = EnvironmentConfig()
    method: Mapping[str, Any] = field(default_factory=dict)  # the [<algorithm>] table, defaults filled in
    budget: Budget = Budget()
    resources: Resources = Resources()
    output: Output = Output()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
