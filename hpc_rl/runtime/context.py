"""What every role starts from: the values that were settled for its rank, and the factories of its parts.

Only the role functions hold a RankContext; every part gets the two or three values that it reads. assembly.py fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_rl.algorithms.base import Learner, Policy
from hpc_rl.optim.flat import StateDict
from hpc_rl.optim.group import Group
from hpc_rl.plan import Plan, RankSpec, WeightRoutes
from hpc_rl.replay.base import RemoteReplay, ReplayRank, Store
from hpc_rl.runtime.counters import Counters, Limits
from hpc_rl.runtime.evaluation import Evaluation, Judge
from hpc_rl.runtime.files import Recording, Resume, RunFiles
from hpc_rl.samplers.base import Sampler, Timings
from hpc_rl.settings import Job
from hpc_rl.transport.ports import Ports
from hpc_rl.types import Array, Schema, Spec, Tree


@dataclass(frozen=True)
class Method:
    """The job's method on this rank: how its parts are made, and how far its annealed values are."""

    name: str
    spec: Spec
    device: str
    arrivals: tuple[str, ...]  # leaves of new fragments that its learner takes before an update
    items: str  # the name under which it learns from fresh fragments
    prioritised: str  # the items that its learner returns priorities of, "" for none
    make_policy: Callable[[], Policy]  # its networks on the device
    begin: Callable[[Policy], None]  # gives a new run's networks what other runs' have learned
    make_learner: Callable[[Policy, Group], Learner]
    progress: Callable[[int, int], float]  # (env steps, updates of the job) -> [0, 1]
    exploration: Callable[[Array, int, int], Array]  # (columns [b], env steps, updates of the job) -> [b]


@dataclass(frozen=True)
class Sampling:
    """The environments of a rank: what fills fragments, what records them, and their part of a checkpoint."""

    sampler: Sampler
    recording: Recording
    state: Callable[[], StateDict]


@dataclass(frozen=True)
class Columns:
    """Environment columns for which another rank acts: the calls of an Environment (envs/base.py)."""

    reset: Callable[[Array], Array]  # seeds [b] -> first observations [b, *O]
    send: Callable[[Array], None]  # actions [b, *A]
    recv: Callable[[], Tree]  # the fields of its TimeSteps, by name


@dataclass
class RankContext:
    """One rank's part of one attempt: everything that was settled before its role begins."""

    job: Job
    plan: Plan
    rank_spec: RankSpec
    ports: Ports
    method: Method
    files: RunFiles
    limits: Limits
    attempt: int
    about: Mapping[str, Any]  # what all checkpoints of this attempt say of it: number, fingerprint, schedule
    routes: WeightRoutes
    resume: Resume
    gather: Callable[[StateDict, Sequence[int]], list[StateDict]]  # of these ranks, at the first; elsewhere []
    make_group: Callable[[], Group]  # of the ranks that learn; collective
    make_store: Callable[[Schema], Store]  # of this rank's own experience
    save_store: Callable[[Store, int], None]  # begin to write what belongs to a checkpoint of another rank, once
    saved_stores: Callable[[int], list[StateDict]]  # the parts that `save_store` of all workers makes of it
    updates_before: Callable[[int], int]  # of this attempt, before an actor's fragment k in a deterministic schedule
    make_replay: Callable[[Schema, Schema], ReplayRank]  # of what is sent to this rank: (recorded, sent)
    make_remote: Callable[[Schema], RemoteReplay]  # of what actors send to replay ranks
    make_sampling: Callable[[Policy, Timings, Callable[[], None]], Sampling]  # the last is called while it steps
    make_columns: Callable[[int, int], Columns]  # (columns, threads)
    make_judge: Callable[[Policy, Timings], Judge]
    make_evaluation: Callable[[Policy, Counters], Evaluation]
    in_role: Callable[[RankSpec, Ports], RankContext]  # this rank's context in another role, on other ports
    flush_replay: Callable[[], None]  # wait until this rank's replay lies in files
    close_environments: Callable[[], None]  # once every rank has saved
