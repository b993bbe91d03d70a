"""Asynchronous training from replay: actors send fragments to replay ranks, learners draw batches from those.

Ape-X (Horgan et al. 2018, arXiv 1803.00933) with several replay ranks and learners; R2D2 and D4PG run on it, and with
central inference SEED's R2D2. Ranks in order: learners, replay ranks, then as on actor_learner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.experience import Experience
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.replay.room import check_room, needs_ring
from hpc_rl.settings import Job
from hpc_rl.topologies.base import evaluators, need, share_columns, split_evenly

if TYPE_CHECKING:
    from hpc_rl.runtime.checkpoints import Outcome
    from hpc_rl.runtime.context import RankContext


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall, Unreplayable, and BadJob when columns and ranks do not divide or nothing is replayed."""
    resources, central, experience = job.resources, job.sampler == "central", jobs.experience(job)
    count, replays = resources.learners, resources.replays
    servers = resources.servers if central and resources.inference == "actor" else 0
    stepping, least = ("environment worker" if central else "actor"), max(1, servers, count, replays)
    parts = [(count, "learner"), (replays, "replay rank"), (servers, "actor"), (least, stepping)]
    sentence = ", ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in parts if n)
    need(job, sum(n for n, _ in parts), sentence)
    judges = evaluators(job)
    begin, end = count + replays, job.resources.ranks - len(judges)
    shares = share_columns(job, end - begin - servers, stepping + "s")
    learners, shards = tuple(range(count)), tuple(range(count, begin))
    front, steppers = tuple(range(begin, begin + servers)), tuple(range(begin + servers, end))
    columns = dict(zip(steppers, shares, strict=True))
    workers: list[RankSpec] = []
    acting = steppers
    if central:
        served = split_evenly(steppers, front or learners, "environment workers", "servers" if front else "learners")
        workers = [RankSpec(r, "env_worker", k, columns[r], 1, peers=(served[r],)) for k, r in enumerate(steppers)]
        acting = front
        own = {r: [columns[s] for s in steppers if served[s] == r] for r in front}
        columns = {r: range(spans[0].start, spans[-1].stop) for r, spans in own.items()}
    senders = acting or learners  # without actor ranks each learner's process acts
    takers = split_evenly(senders, shards, "actors", "replay ranks")
    chiefs = split_evenly(acting, learners, "actors", "learners")
    actors = [RankSpec(r, "actor", k, columns[r], 1, peers=(takers[r], chiefs[r])) for k, r in enumerate(acting)]
    told = {k: tuple(r for r in acting if chiefs[r] == k) or (k,) for k in learners}
    learning = [
        RankSpec(k, "learner", k, range(0), resources.threads, True, "accelerator", (*told[k], *shards))
        for k in learners
    ]
    keeping = [
        RankSpec(s, "replay_server", k, range(0), 1, peers=tuple(r for r in senders if takers[r] == s))
        for k, s in enumerate(shards)
    ]
    _check(job, experience, len(steppers))
    width = len(shares[0])
    ranks = (*learning, *keeping, *actors, *workers, *judges)
    return Plan(job.topology, ranks, experience.unroll, job.environment.columns, width)


def _check(job: Job, experience: Experience, lanes: int) -> None:
    """Raise BadJob where nothing is drawn from a replay, or the schedule cannot be kept."""
    if not needs_ring(experience):
        raise BadJob(
            f"{job.algorithm} learns from fresh experience, and topology {job.topology} draws from a replay; "
            'use topology = "actor_learner"'
        )
    columns = job.environment.columns
    check_room(experience, columns, job.resources.learners)
    if job.schedule == "free":
        return
    least = columns * (experience.unroll + max(items.length for items in experience.items))
    if any(items.complete != "length" for items in experience.items) or experience.min_size < least:
        raise BadJob(
            f'schedule = "deterministic" needs an item before the first update, whatever the episodes; '
            f"set {job.algorithm}.min_size to {least} or more"
        )


def run(context: RankContext) -> Outcome | None:
    """Become this rank's role; on rank 0 the outcome of the run."""
    from hpc_rl.roles.actor import actor
    from hpc_rl.roles.env_worker import env_worker
    from hpc_rl.roles.evaluator import evaluator
    from hpc_rl.roles.inference_thread import InferenceThread
    from hpc_rl.roles.replay_learner import replay_learner
    from hpc_rl.roles.replay_server import replay_server

    rank_spec, ranks = context.rank_spec, context.plan.ranks
    if rank_spec.role == "learner":
        takers = [p.rank for p in ranks if p.role == "replay_server" and rank_spec.rank in p.peers]
        return replay_learner(context, (lambda: InferenceThread(context, actor, takers[0]).join) if takers else None)
    roles = {"actor": actor, "env_worker": env_worker, "evaluator": evaluator, "replay_server": replay_server}
    roles[rank_spec.role](context)
    return None
