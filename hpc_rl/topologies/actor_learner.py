"""Asynchronous training: rank 0 learns, every other rank acts and sends it trajectories, one fragment a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl.job import BadJob, Job
from hpc_rl.topologies.base import Place, Plan, need, share_columns

if TYPE_CHECKING:
    from hpc_rl.roles.base import Seat


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall below two ranks, and BadJob when columns, actors and batch do not divide."""
    need(job, 2, "1 learner and 1 actor")
    actors = job.resources.ranks - 1
    shares = share_columns(job, actors, "actors")
    each = len(shares[0])
    batch = int(job.method.get("batch_columns", 0)) or each
    if batch % each:
        raise BadJob(
            f"{job.algorithm}.batch_columns = {batch} is not a multiple of the {each} columns of one actor; "
            f"use {each} or a multiple, or another number of ranks"
        )
    ranks = tuple(range(1, actors + 1))
    learner = Place(0, "learner", 0, range(0), job.resources.threads, True, ranks)
    places = tuple(Place(r, "actor", r - 1, shares[r - 1], 1, False, (0,)) for r in ranks)
    return Plan(job.topology, (learner, *places), int(job.method["unroll"]), batch)


def run(seat: Seat) -> None:
    """Become this rank's learner or actor."""
    from hpc_rl.roles.actor import actor
    from hpc_rl.roles.learner import learner

    {"learner": learner, "actor": actor}[seat.place.role](seat)
