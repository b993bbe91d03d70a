"""Synchronous training: every rank is a worker with an equal share of the columns; gradients are summed over all.

Where a method has work for ranks without columns (``Experience.columnless``), there may be more ranks than columns.
Where moves are recorded, no rank has columns; each learns from its share of them.
With ``resources.evaluators = 1`` the last rank plays the evaluations instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl import job as jobs
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.replay.room import check_room
from hpc_rl.settings import Job
from hpc_rl.sources import source_of
from hpc_rl.topologies.base import check_minibatches, check_recorded, evaluators, in_process, need, share_columns

if TYPE_CHECKING:
    from hpc_rl.runtime.checkpoints import Outcome
    from hpc_rl.runtime.context import RankContext


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall, Unreplayable, and BadJob when ranks cannot share the columns, or minibatches the batch."""
    need(job, 1, "1 worker")
    in_process(job)
    judges = evaluators(job)
    count, threads = job.resources.ranks - len(judges), job.resources.threads
    experience = jobs.experience(job)
    if source_of(experience) is not None:
        check_recorded(job, experience, count)
        shares = [range(0)] * count
    else:
        shares = share_columns(job, count, "ranks" if not judges else "workers", empty=experience.columnless)
    check_minibatches(job, experience, job.environment.columns)
    check_room(experience, job.environment.columns, sum(1 for share in shares if share) or count)
    peers = tuple(range(count))
    workers = [RankSpec(r, "worker", r, shares[r], threads, True, "accelerator", peers) for r in range(count)]
    together = sum(len(share) for share in shares)
    return Plan(job.topology, (*workers, *judges), experience.unroll, together, len(shares[0]))


def run(context: RankContext) -> Outcome | None:
    """Become this rank's worker or evaluator; on rank 0 the outcome of the run."""
    from hpc_rl.roles.evaluator import evaluator
    from hpc_rl.roles.worker import worker

    if context.rank_spec.role == "worker":
        return worker(context)
    evaluator(context)
    return None
