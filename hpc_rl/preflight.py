"""What would end a job's ranks at their start, found before any of them is started, and without importing torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, describe_sets, goal_reward, make
from hpc_rl.envs.mixture import check_shares
from hpc_rl.envs.of_rules import game_of_two, on_device
from hpc_rl.envs.opponents import path_of, run_of
from hpc_rl.plan import Plan
from hpc_rl.replay.relabel import check_goals, goals_of_observations
from hpc_rl.settings import Job
from hpc_rl.sources import source_of
from hpc_rl.storage import archive
from hpc_rl.storage.run_dir import BadRun, open_run


def check(job: Job, plan: Plan) -> None:
    """Describe the job's environments, and share out its processes, as the ranks will.

    Whether the method can learn there is said by `hpc-rl show`, or by the first rank: making its policy here would let
    every run begin two seconds later. Goals that are to be relabelled are looked for.

    Raises:
        BadEnvironment: a ROM, package or argument is missing, or a rank's columns cannot be shared out.
        Unsuited: the environment has no goals to relabel.
        BadRun: an opponent's checkpoint belongs to no run, or networks are to begin as those of none.
        BadSource: there are no recorded moves to learn from, or they are another environment's.
    """
    id, arguments, experience = job.environment.id, job.environment.arguments, jobs.experience(job)
    spec = describe(id, arguments)
    describe_sets(id, arguments, job.evaluate.arguments, spec)
    if job.sampler == "device":
        on_device(id, arguments, np)
    for changes in ({}, *job.evaluate.arguments):
        opponent = {**arguments, **changes}.get("opponent")
        if (path := path_of(opponent)) is not None:
            open_run(run_of(path))
        elif opponent == "perfect":
            make(id, {**arguments, **changes}, 1).close()  # a game too large for it would end the first evaluation
    _check_self_play(job)
    check_goals(experience, spec)
    if goals_of_observations(experience):
        goal_reward(id, arguments)
    if (source := source_of(experience)) is not None:
        archive.check(source, spec)
    for start in jobs.starts(job):
        if not any(open_run(Path(start.run)).checkpoints.glob("*.h5")):
            raise BadRun(f"{start.key} = {start.run!r} holds no checkpoint yet; let that run end first")
    for rank in plan.ranks:
        if rank.columns:
            check_shares(id, arguments, len(rank.columns), job.environment.processes)


def _check_self_play(job: Job) -> None:
    """Refuse to judge a policy by games that it plays against itself, whose returns are the sum of both sides', and
    to learn from matches what needs such games."""
    id, arguments, evaluate = job.environment.id, job.environment.arguments, job.evaluate
    if "opponent" in arguments and jobs.experience(job).self_play:
        raise BadEnvironment(
            f"{job.algorithm} learns from both sides of the games that it plays against itself, and a match shows it "
            f"one of them; name opponent = {arguments['opponent']!r} in evaluate.arguments instead"
        )
    if "opponent" in arguments or game_of_two(id, arguments) is None:
        return
    alone = [changes for changes in evaluate.arguments or ({},) if "opponent" not in changes]
    if (evaluate.periodic and alone) or (job.budget.stop_at_return is not None and not evaluate.periodic):
        raise BadEnvironment(
            f"in {id} the policy plays both sides, and the return of such a game judges neither; let it play others: "
            'evaluate.every_steps, and evaluate.arguments = [{ opponent = "random" }], an opponent in each set'
        )
