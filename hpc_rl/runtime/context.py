"""What every role starts from: all that was settled for its rank, and the samplers and schemas made from that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.algorithms.base import Algorithm, Policy
from hpc_rl.envs.base import Environment
from hpc_rl.experience import Experience
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.optim.flat import StateDict
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.runtime.judge import MakeEvaluation
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.central import Central, Remote
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.settings import Job
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.transport.ports import Ports
from hpc_rl.types import Array, Leaf, Schema, Spec, Tree

LEAST_LEAD_S = 20.0  # before the end of the allocation; SLURM's signal usually comes long before


@dataclass
class RankContext:
    """One rank's part of one attempt: everything that startup.py settled before the role begins."""

    job: Job
    plan: Plan
    rank_spec: RankSpec
    ports: Ports
    run: RunDir
    attempt: int
    token: str  # names this attempt's files in node-shared memory
    nodes: list[int]  # for each rank the lowest rank on its node
    device: str
    spec: Spec
    algorithm: Algorithm
    config: Any
    experience: Experience
    resume: tuple[StateDict, dict[str, Any]] | None  # checkpoint to go on from
    stop: Callable[[], bool]  # a signal or the STOP file asks this rank to stop
    make_environment: Callable[[int, int], Environment]  # (columns, threads)
    make_policy: Callable[[], Policy]
    make_evaluation: MakeEvaluation  # environments of the games that judge a policy
    started: float = field(default_factory=time.monotonic)
    end_s: float | None = None  # unix time at which the allocation ends
    save_s: float = 0.0  # the longest checkpoint so far
    environments: list[Environment] = field(default_factory=list)  # run.py closes them once every rank has saved

    def out_of_time(self) -> bool:
        """The allocation leaves just enough time to save and leave."""
        return self.end_s is not None and time.time() > self.end_s - max(LEAST_LEAD_S, 3 * self.save_s)


def recorded_columns(columns: Array, total: int, fraction: float) -> Array:
    """[b] bool: which ``columns`` belong to the recorded fraction of all; the same whatever rank holds them."""
    wanted = np.floor((np.arange(total) + 1) * fraction) > np.floor(np.arange(total) * fraction)
    kept: Array = wanted[columns]
    return kept


def schemas(policy: Policy, spec: Spec) -> tuple[Schema, Schema]:
    """(what is recorded, what is sent): messages also say how far each column's closed segments reach."""
    recorded = trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise)
    closed = Leaf((), "int64", "fragment", "env step", "up to here the column lies in closed segments")
    return recorded, {**recorded, "closed": closed}


def learned_columns(plan: Plan, rank_spec: RankSpec) -> list[int]:
    """The global columns whose experience this rank learns from: its own, or those of the ranks that send to it."""
    if rank_spec.role != "learner":
        return list(rank_spec.columns)
    sending = [p for p in plan.ranks if p.rank in rank_spec.peers and p.role == "actor"]
    serving = [p for p in plan.ranks if p.role == "env_worker" and p.peers == (rank_spec.rank,)]
    return [column for p in [*sending, *serving] for column in p.columns]


def make_sampler(
    context: RankContext, policy: Policy, timings: Timings, pulse: Callable[[], None], threads: int
) -> Vector:
    """This rank's columns, in one lane or, alternating, in two."""
    halves = np.array_split(
        np.array(context.rank_spec.columns, np.int32), 2 if context.job.sampler == "alternating" else 1
    )
    made = [make_lane(context, policy, context.make_environment(len(half), threads), half) for half in halves]
    return Vector(made, timings, pulse)


def make_lane(context: RankContext, policy: Policy, environment: Environment, columns: Array) -> Lane:
    """Columns with their own streams, started; resumed, steps are counted from where the checkpoint ends."""
    seed, attempt, numbers = context.job.seed, context.attempt, columns.tolist()
    made = Lane(environment, policy, columns, streams(seed, "act", numbers, attempt))
    made.attempt = attempt
    made.start(episode_seeds(seed, "episode", numbers, attempt))
    if context.resume:
        steps = context.resume[1]["steps"]
        made.steps = np.array([steps.get(str(column), 0) for column in numbers], np.int64)
    return made


def make_central_sampler(
    context: RankContext, policy: Policy, schema: Schema, timings: Timings, pulse: Callable[[], None]
) -> Central:
    """One lane for each environment rank that this one serves."""
    ports, spec = context.ports, context.spec
    served = [
        rank for rank in context.plan.ranks if rank.role == "env_worker" and rank.peers[0] == context.rank_spec.rank
    ]
    remotes = [Remote(ports.link, ports.waiting, rank.rank, spec, len(rank.columns)) for rank in served]
    pairs = zip(remotes, served, strict=True)
    lanes = [make_lane(context, policy, remote, np.array(rank.columns, np.int32)) for remote, rank in pairs]

    def fragment(lane: Lane) -> Tree:
        return allocate(schema, context.plan.steps, len(lane.columns), spec.stack)

    return Central(lanes, remotes, fragment, ports.waiting, timings, pulse)
