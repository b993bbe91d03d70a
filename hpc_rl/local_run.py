"""A job's ranks on this machine, from the checks to the end: what `hpc-rl run` and `hpc_rl.run` have in common."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hpc_rl import job as jobs
from hpc_rl.launchers import local
from hpc_rl.launchers.base import Outcome
from hpc_rl.plan import Plan
from hpc_rl.settings import Job
from hpc_rl.storage import run_dir
from hpc_rl.storage.run_dir import RunDir


def prepare(job: Job, folder: Path, resume: bool) -> RunDir:
    """The folder of a run, made or taken up, once all is well that can be seen before a rank starts.

    Raises:
        BadJob, WorldTooSmall, BadEnvironment: the job has no plan here, or its environment cannot be made.
        BadRun: the folder holds something else, or cannot be written.
    """
    plan = jobs.topology(job.topology).plan(job)
    local.command(folder, job.resources.ranks)  # raises where there is no mpiexec
    _check_environment(job, plan)
    if not resume:
        return run_dir.create(folder, jobs.dumps(job))
    directory = run_dir.open_run(folder)
    run_dir.write_text(directory.job_file, jobs.dumps(job))
    return directory


def train(job: Job, directory: RunDir) -> Outcome:
    """Run every rank to its end, with the figures on stderr."""
    from hpc_rl.screen import Screen

    screen = Screen(directory, job, jobs.topology(job.topology).plan(job))
    outcome = local.launch(job, directory, screen.tick)
    with suppress(Exception):  # everything is over and saved: what is shown of it decides nothing
        screen.close(outcome.sentence)
    return outcome


def _check_environment(job: Job, plan: Plan) -> None:
    """A missing ROM, package or argument, and too many processes, are found before anything starts."""
    from hpc_rl.envs.column_shares import split_columns
    from hpc_rl.envs.make import describe, describe_sets

    spec = describe(job.environment.id, job.environment.arguments)
    describe_sets(job.environment.id, job.environment.arguments, job.evaluate.arguments, spec)
    for rank in plan.ranks:
        if rank.columns:
            split_columns(job.environment.id, len(rank.columns), job.environment.processes)
