"""What would end a job's ranks at their start, found before any of them is started."""

from __future__ import annotations

from hpc_rl.agent import agent_of
from hpc_rl.envs.column_shares import split_columns
from hpc_rl.envs.make import describe_sets
from hpc_rl.plan import Plan
from hpc_rl.replay.stores import store_bytes
from hpc_rl.runtime.messages import schemas
from hpc_rl.runtime.stores import shards
from hpc_rl.settings import Job


def check(job: Job, plan: Plan) -> None:
    """Describe the environment, and make the method's policy once, as the ranks will.

    Raises:
        BadEnvironment: a ROM, package or argument is missing, or there are more processes than columns.
        BadMethod, Unsuited: the method cannot be imported, or cannot learn in this environment.
        Unreplayable: what it learns from cannot be kept and drawn again.
    """
    agent = agent_of(job)
    describe_sets(job.environment.id, job.environment.arguments, job.evaluate.arguments, agent.spec)
    shares = [len(rank.columns) for rank in plan.ranks if rank.columns]
    for columns in shares:
        split_columns(job.environment.id, columns, job.environment.processes)
    recorded, _ = schemas(agent.make_policy(), agent.spec)
    store_bytes(agent.experience, recorded, agent.spec, max(shares), shards(plan))
