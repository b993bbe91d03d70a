"""The sampler of a rank: its own environments, or those of the environment ranks that it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.base import Environment
from hpc_rl.envs.of_rules import on_device
from hpc_rl.envs.toy import Toy
from hpc_rl.fragments import allocate
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.runtime.messages import schemas
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.central import Central, Remote
from hpc_rl.samplers.device import Device
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.uniforms import keys_of
from hpc_rl.samplers.vector import Vector
from hpc_rl.settings import Job
from hpc_rl.transport.ports import Ports
from hpc_rl.types import Array, Spec, Tree


@dataclass(frozen=True)
class Lanes:
    """How an attempt's lanes begin: the keys of their random streams, and env steps of the attempts before."""

    seed: int
    attempt: int
    steps: Mapping[str, int]  # column -> env steps up to the checkpoint; empty where the run begins

    def start(self, policy: Policy, environment: Environment, columns: Array) -> Lane:
        """Columns with their own streams; resumed, steps are counted from where the checkpoint ends."""
        numbers, key = columns.tolist(), self.key
        lane = Lane(environment, policy, columns, streams(self.seed, "act", numbers, key))
        lane.attempt = self.attempt
        lane.start(episode_seeds(self.seed, "episode", numbers, key))
        lane.steps = self.before(columns)
        return lane

    def tensors(
        self,
        toy: Toy,
        policy: Policy,
        columns: Array,
        timings: Timings,
        pulse: Callable[[], None],
        compiled: bool,
    ) -> Device:
        """The same columns as tensors, with keys for their streams."""
        keys = keys_of(self.seed, "act", columns, self.key)
        return Device(toy, policy, columns, keys, self.before(columns), self.attempt, timings, pulse, compiled)

    @property
    def key(self) -> int:
        """Of the attempt's random streams: without a checkpoint it repeats the first one."""
        return self.attempt if self.steps else 0

    def before(self, columns: Array) -> Array:
        """Env steps int64 [b] that these columns made up to the checkpoint."""
        return np.array([self.steps.get(str(column), 0) for column in columns], np.int64)


def own_sampler(
    lanes: Lanes,
    policy: Policy,
    rank_spec: RankSpec,
    job: Job,
    make_environment: Callable[[int, int], Environment],
    timings: Timings,
    pulse: Callable[[], None],
) -> Vector | Device:
    """This rank's columns: tensors on its policy's device, or lanes, of which the alternating sampler has two. Without
    columns there is nothing to fill."""
    if not rank_spec.columns:
        return Vector([], timings, pulse)
    columns = np.array(rank_spec.columns, np.int32)
    if job.sampler == "device":
        toy = on_device(job.environment.id, job.environment.arguments, torch)
        return lanes.tensors(toy, policy, columns, timings, pulse, job.resources.compile)
    threads, parts = max(1, rank_spec.threads), np.array_split(columns, 2 if job.sampler == "alternating" else 1)
    return Vector([lanes.start(policy, make_environment(len(x), threads), x) for x in parts], timings, pulse)


def central_sampler(
    lanes: Lanes,
    policy: Policy,
    rank_spec: RankSpec,
    plan: Plan,
    ports: Ports,
    spec: Spec,
    timings: Timings,
    pulse: Callable[[], None],
) -> Central:
    """One lane for each environment rank that this one serves."""
    served = [x for x in plan.ranks if x.role == "env_worker" and x.peers[0] == rank_spec.rank]
    remotes = [Remote(ports.link, ports.waiting, x.rank, spec, len(x.columns)) for x in served]
    started = [
        lanes.start(policy, remote, np.array(x.columns, np.int32)) for remote, x in zip(remotes, served, strict=True)
    ]
    schema = schemas(policy, spec)[0]

    def fragment(lane: Lane) -> Tree:
        return allocate(schema, plan.steps, len(lane.columns), spec.stack)

    return Central(started, remotes, fragment, ports.waiting, timings, pulse)
