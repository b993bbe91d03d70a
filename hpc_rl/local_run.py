"""A job's ranks on this machine, from the checks to the end: what `hpc-rl run` and `hpc_rl.run` have in common."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hpc_rl import job as jobs
from hpc_rl.launchers import local
from hpc_rl.launchers.base import Outcome
from hpc_rl.settings import Job
from hpc_rl.storage import run_dir
from hpc_rl.storage.run_dir import RunDir


def prepare(job: Job, folder: Path, resume: bool) -> RunDir:
    """The folder of a run, made or taken up, once all is well that can be seen before a rank starts.

    Raises:
        BadJob, WorldTooSmall: the job has no plan here.
        BadEnvironment, Unsuited: see preflight.py.
        BadRun: the folder holds something else, or cannot be written.
    """
    from hpc_rl import preflight

    plan = jobs.plan(job)
    local.command(folder, job)  # raises where there is no mpiexec
    preflight.check(job, plan)
    if not resume:
        return run_dir.create(folder, jobs.dumps(job))
    directory = run_dir.open_run(folder)
    run_dir.write_text(directory.job_file, jobs.dumps(job))
    return directory


def train(job: Job, directory: RunDir) -> Outcome:
    """Run every rank to its end, with the figures on stderr."""
    from hpc_rl.screen import Screen

    screen = Screen(directory, job, jobs.plan(job))
    outcome = local.launch(job, directory, screen.tick)
    with suppress(Exception):  # everything is over and saved: what is shown of it decides nothing
        screen.close(outcome.sentence)
    return outcome
