"""Synchronous training: every rank is a worker with an equal share of the columns; gradients are summed over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl import job as jobs
from hpc_rl.job import Job
from hpc_rl.topologies.base import Place, Plan, check_minibatches, in_process, need, share_columns

if TYPE_CHECKING:
    from hpc_rl.roles.base import Seat


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall, and BadJob when ranks cannot share the columns, or minibatches the batch."""
    need(job, 1, "workers")
    in_process(job)
    ranks = job.resources.ranks
    shares = share_columns(job, ranks, "ranks")
    experience = jobs.experience(job)
    check_minibatches(job, experience, job.environment.columns)
    peers = tuple(range(ranks))
    places = tuple(Place(r, "worker", r, shares[r], job.resources.threads, True, peers) for r in range(ranks))
    return Plan(job.topology, places, experience.unroll, job.environment.columns, len(shares[0]))


def run(seat: Seat) -> None:
    """Become this rank's worker."""
    from hpc_rl.roles.worker import worker

    worker(seat)
