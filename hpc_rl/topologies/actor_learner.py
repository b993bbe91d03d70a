"""Asynchronous training: learners, and ranks that act and send them trajectories, one fragment a message.

Actors step their own columns. With central inference environment ranks step them and hold no weights: they are answered
in their learner's process, or by actor ranks of their own. With ``resources.evaluators = 1`` the last rank plays the
evaluations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.settings import Job
from hpc_rl.topologies.base import (
    check_minibatches,
    evaluators,
    fresh_only,
    need,
    share_columns,
    split_evenly,
)

if TYPE_CHECKING:
    from hpc_rl.runtime.checkpoints import Outcome
    from hpc_rl.runtime.context import RankContext


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall, and BadJob when columns, ranks and batch do not divide."""
    resources, central = job.resources, job.sampler == "central"
    count = resources.learners
    servers = resources.servers if central and resources.inference == "actor" else 0
    stepping = "environment worker" if central else "actor"
    need(job, count + servers + max(1, servers, count), _minimum(count, servers, stepping))
    judges = evaluators(job)
    end = resources.ranks - len(judges)
    shares = share_columns(job, end - count - servers, stepping + "s")
    learners, front = tuple(range(count)), tuple(range(count, count + servers))
    steppers = tuple(range(count + servers, end))
    learning = [RankSpec(r, "learner", r, range(0), resources.threads, True, "accelerator") for r in learners]
    columns = dict(zip(steppers, shares, strict=True))
    if not central:
        actors = _bound(steppers, learners, "actor", columns, "learners")
        return _whole(job, [*learning, *actors, *judges], {a.rank: a.peers[0] for a in actors}, len(shares[0]))
    workers = _bound(steppers, front or learners, "env_worker", columns, "servers" if front else "learners")
    served = {r: [w.columns for w in workers if w.peers == (r,)] for r in front}
    spans = {
        r: range(columns_of_server[0].start, columns_of_server[-1].stop) for r, columns_of_server in served.items()
    }
    actors = _bound(front, learners, "actor", spans, "learners")
    sends = {a.rank: a.peers[0] for a in actors} or {r: r for r in learners}
    return _whole(job, [*learning, *actors, *workers, *judges], sends, len(shares[0]))


def _minimum(learners: int, servers: int, stepping: str) -> str:
    parts = [(learners, "learner"), (servers, "actor"), (max(1, servers, learners), stepping)]
    return " and ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in parts if n)


def _bound(
    ranks: tuple[int, ...], to: tuple[int, ...], role: str, columns: dict[int, range], those: str
) -> list[RankSpec]:
    """Ranks of ``role``, each with one peer, one of ``those``; neighbours share it."""
    noun = {"actor": "actors", "env_worker": "environment workers"}[role]
    peers = split_evenly(ranks, to, noun, those)
    return [RankSpec(r, role, k, columns[r], 1, peers=(peers[r],)) for k, r in enumerate(ranks)]


def _whole(job: Job, specs: list[RankSpec], sends: dict[int, int], width: int) -> Plan:
    """Check the batch, and tell every learner who sends to it."""
    count = job.resources.learners
    experience = jobs.experience(job)
    fresh_only(job, experience)
    batch = experience.items[0].batch_size or width * count
    if job.schedule == "deterministic" and batch != width * len(sends):
        raise BadJob(
            f'schedule = "deterministic" takes one fragment of every actor for each update; use '
            f"{job.algorithm}.batch_columns = {width * len(sends)} instead of {batch}"
        )
    if batch % (width * count):
        each = f"the {width} columns of one fragment" + (f" times {count} learners" if count > 1 else "")
        raise BadJob(
            f"{job.algorithm}.batch_columns = {batch} is not a multiple of {each}; "
            f"use {width * count} or a multiple, or another number of ranks"
        )
    check_minibatches(job, experience, batch)
    peers = {k: tuple(r for r, to in sends.items() if to == k) for k in range(count)}
    ranks = [replace(spec, peers=peers[spec.rank]) if spec.role == "learner" else spec for spec in specs]
    return Plan(job.topology, tuple(ranks), experience.unroll, batch, width)


def run(context: RankContext) -> Outcome | None:
    """Become this rank's role; on rank 0 the outcome of the run."""
    from hpc_rl.roles.actor import actor
    from hpc_rl.roles.env_worker import env_worker
    from hpc_rl.roles.evaluator import evaluator
    from hpc_rl.roles.inference_thread import InferenceThread
    from hpc_rl.roles.learner import learner

    rank_spec = context.rank_spec
    if rank_spec.role == "learner":
        serves = rank_spec.rank in rank_spec.peers
        return learner(context, (lambda: InferenceThread(context, actor).join) if serves else None)
    {"actor": actor, "env_worker": env_worker, "evaluator": evaluator}[rank_spec.role](context)
    return None
