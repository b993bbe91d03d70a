"""Asynchronous gradients: the first ranks keep the parameters, every other rank steps, learns and pushes to them.

With ``resources.quorum`` = W − D of W workers the servers wait for that many gradients of a version (DPPO). With
``resources.evaluators = 1`` the last rank plays the evaluations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.replay.room import check_room
from hpc_rl.settings import Job
from hpc_rl.topologies.base import check_minibatches, evaluators, in_process, need, share_columns

if TYPE_CHECKING:
    from hpc_rl.runtime.checkpoints import Outcome
    from hpc_rl.runtime.context import RankContext


def plan(job: Job) -> Plan:
    """Raises WorldTooSmall, Unreplayable, and BadJob for settings that this topology cannot keep."""
    servers, quorum = job.resources.servers, job.resources.quorum
    need(job, servers + 1, f"{servers} parameter server(s) and 1 worker")
    judges = evaluators(job)
    workers = job.resources.ranks - servers - len(judges)
    in_process(job)
    _check(job, servers, quorum, workers)
    shares = share_columns(job, workers, "workers")
    experience = jobs.experience(job)
    check_minibatches(job, experience, len(shares[0]))
    check_room(experience, len(shares[0]), 1)
    ranks = tuple(range(servers, servers + workers))
    serving = [RankSpec(r, "parameter_server", r, range(0), 1, peers=ranks) for r in range(servers)]
    peers = tuple(range(servers))
    threads, width = job.resources.threads, len(shares[0])
    working = [RankSpec(r, "worker", k, shares[k], threads, True, "accelerator", peers) for k, r in enumerate(ranks)]
    return Plan(job.topology, (*serving, *working, *judges), experience.unroll, width * max(1, quorum), width)


def _check(job: Job, servers: int, quorum: int, workers: int) -> None:
    if quorum > workers:
        raise BadJob(
            f"resources.quorum = {quorum} but there are {workers} workers; use at most {workers}, or more ranks"
        )
    if quorum and servers > 1:
        raise BadJob(f"resources.quorum = {quorum} needs the whole gradient on one server; use resources.servers = 1")
    for key in ("normalize_observation", "normalize_reward"):
        if job.method.get(key):
            raise BadJob(
                f"{job.algorithm}.{key} needs statistics that all workers share, which parameter servers do not keep; "
                f'set it to false, or topology = "allreduce"'
            )


def run(context: RankContext) -> Outcome | None:
    """Become this rank's server, worker or evaluator; on rank 0 the outcome of the run."""
    from hpc_rl.roles.evaluator import evaluator
    from hpc_rl.roles.gradient_worker import gradient_worker
    from hpc_rl.roles.parameter_server import parameter_server

    if context.rank_spec.role == "parameter_server":
        return parameter_server(context)
    {"worker": gradient_worker, "evaluator": evaluator}[context.rank_spec.role](context)
    return None
