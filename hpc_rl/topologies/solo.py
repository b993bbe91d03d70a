"""One rank does everything: steps its environments, learns, records. The base case of `allreduce`."""

from __future__ import annotations

from hpc_rl.config import BadJob
from hpc_rl.plan import Plan
from hpc_rl.settings import Job
from hpc_rl.topologies import allreduce

run = allreduce.run


def plan(job: Job) -> Plan:
    """Raises BadJob for any number of ranks but one."""
    if job.resources.ranks != 1:
        raise BadJob(
            f'topology solo runs on 1 rank, not {job.resources.ranks}; a new run may have topology = "allreduce"'
        )
    return allreduce.plan(job)
