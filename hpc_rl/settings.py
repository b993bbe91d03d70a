"""The values of a job, section by section, with their defaults, ranges and units. job.py reads and writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range

OUT_OF_TIME = "stopped: the allocation ends"  # the reason where the ranks saw by the clock that its end is near
TOO_FEW = "stopped: too few actors are left"  # how a reason begins when lost actors ended it
BUDGET_SPENT = "stopped: time limit of"  # how a reason begins when the job's own time limit ended it


@dataclass(frozen=True)
class EnvironmentConfig:
    id: Annotated[str, "Gymnasium id, ALE/<Game>-v5, toy/<name>, warp/<robot>, my_pkg.my_module:make or mixture"] = ""
    columns: Annotated[PositiveInt, "B, environments over all ranks"] = 8
    processes: Annotated[NonNegativeInt, "child processes that share a rank's columns; 0 steps them in the rank"] = 0
    state: Annotated[tuple[str, ...], "methods that get and set its state; [] takes get_state and set_state"] = ()
    arguments: Annotated[dict[str, Any], "for the environment's constructor"] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    env_steps: Annotated[PositiveInt, "valid moves over all columns, after which the run is done"] = 1_000_000
    updates: Annotated[NonNegativeInt, "a second budget, over which annealed values then fall; 0 is none"] = 0
    time_limit_s: Annotated[NonNegative, "s, of one attempt; 0 is none"] = 0.0
    stop_at_return: (
        Annotated[
            float,
            "the run is done once the mean raw return is this: of the greedy games where evaluate.every_steps > 0, "
            "else of the last 100 training games; left out, it goes on to the end of the budget",
        ]
        | None
    ) = None

    def left(self, env_steps: int, updates: int) -> float:
        """Env steps until the first of both budgets is used, at the present number of env steps per update."""
        by_updates = (self.updates - updates) * env_steps / updates if self.updates and updates else math.inf
        return max(0.0, min(self.env_steps - env_steps, by_updates))


@dataclass(frozen=True)
class Resources:
    ranks: Annotated[PositiveInt, "MPI ranks"] = 1
    learners: Annotated[PositiveInt, "ranks that learn, on actor_learner and actor_replay_learner"] = 1
    replays: Annotated[PositiveInt, "ranks that keep the replay, on actor_replay_learner"] = 1
    servers: Annotated[PositiveInt, "parameter servers, or actors that answer environment workers"] = 1
    inference: Annotated[Literal["learner", "actor"], "what answers the central sampler's environment workers"] = (
        "learner"
    )
    evaluators: Annotated[int, Range(0, 1), "ranks that play the evaluations; 0: rank 0 does, between its updates"] = 0
    quorum: Annotated[NonNegativeInt, "gradients to an update of a parameter server; 0 takes each as it comes"] = 0
    threads: Annotated[
        NonNegativeInt, "CPU threads of a learning rank; 0: its share of the cores for images, 1 for vectors"
    ] = 0
    precision: Annotated[Literal["auto", "fp32", "bf16"], "of the torso; auto is the faster on each processor"] = "auto"
    precisions: Annotated[
        dict[str, Literal["fp32", "bf16"]], "what auto chose, by processor; written at the start, left out by people"
    ] = field(default_factory=dict, hash=False)
    device: Annotated[Literal["auto", "cpu", "cuda"], "of ranks that learn; auto: a GPU where each finds one"] = "auto"
    compile: Annotated[bool, "compile the device sampler's moves: seconds at the start, then 2.5 times the rate"] = (
        False
    )
    reduction: Annotated[Literal["mpi", "gloo", "nccl"], "what sums the gradients of several learners"] = "mpi"
    deadline_s: Annotated[Positive, "s, the longest wait for another rank"] = 120.0
    tolerate_lost_actors: Annotated[bool, "go on without actors that were killed, instead of ending"] = False


@dataclass(frozen=True)
class Output:
    record: Annotated[Fraction, "share of the columns whose every step is written; 0 with the device sampler"] = 1.0
    compression: Annotated[Literal["zstd", "gzip", "none"], "of the recorded segments"] = "zstd"
    segment_bytes: Annotated[PositiveInt, "bytes at which a segment is closed"] = 268_435_456
    segment_s: Annotated[Positive, "s, the age at which a segment is closed"] = 600.0
    metrics_s: Annotated[Positive, "s between metric lines"] = 2.0


@dataclass(frozen=True)
class Checkpoint:
    interval_s: Annotated[Positive, "s between checkpoints"] = 120.0
    keep: Annotated[PositiveInt, "checkpoints that are kept: the newest, besides the best"] = 3
    replay: Annotated[bool, "keep the replay; false: a resumed run fills it again before its first update"] = True


@dataclass(frozen=True)
class Evaluate:
    every_steps: Annotated[NonNegativeInt, "env steps between evaluations; 0 never evaluates"] = 0
    every_updates: Annotated[NonNegativeInt, "updates between evaluations, whatever the env steps; 0 counts none"] = 0
    from_return: (
        Annotated[float, "no evaluation before the last 100 training games have this mean raw return"] | None
    ) = None
    episodes: Annotated[PositiveInt, "greedy games of each set of arguments"] = 10
    arguments: Annotated[
        tuple[dict[str, Any], ...], "sets that override environment.arguments, each judged by itself"
    ] = ()

    @property
    def periodic(self) -> bool:
        """Policies are evaluated while training goes on."""
        return bool(self.every_steps or self.every_updates)


@dataclass(frozen=True)
class Job:
    name: Annotated[str, "of the run; by default that of the file"]
    algorithm: Annotated[str, "the method: a file of hpc_rl/algorithms"]
    topology: Annotated[str, "which ranks there are and what they send each other"]
    sampler: Annotated[Literal["vector", "alternating", "central", "device"], "who steps the columns and who acts"] = (
        "vector"
    )
    schedule: Annotated[
        Literal["free", "deterministic"], "of ranks that send experience; deterministic: repeats bitwise"
    ] = "free"
    seed: Annotated[int, Range(0, 2**31 - 1), "of every random stream"] = 1
    environment: EnvironmentConfig = EnvironmentConfig()
    method: Mapping[str, Any] = field(default_factory=dict)  # the [<algorithm>] table, defaults filled in
    budget: Budget = Budget()
    resources: Resources = Resources()
    output: Output = Output()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
