"""What a run goes on with: its own job, with those changes that a resumed run may make. No torch, no MPI."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_rl import job as jobs
from hpc_rl.job import BadJob, Job
from hpc_rl.storage.run_dir import BadRun, RunDir, refuse_done


def again(run: RunDir, overrides: Iterable[str]) -> Job:
    """The job of ``run`` with ``key=value`` overrides, checked; nothing is written.

    Raises:
        BadJob: a change that a resumed run may not make, or a larger budget where what is annealed has come to 0.
        BadRun: the run is done, and its budget is the same.
    """
    saved = jobs.load(run.job_file)
    wanted = jobs.resumed(saved, jobs.load(run.job_file, overrides))
    state, before, after = run.read_state(), saved.budget.env_steps, wanted.budget.env_steps
    annealed = [f"{saved.algorithm}.{key}" for key, x in saved.method.items() if key.startswith("anneal") and x is True]
    at_rest = bool(annealed) and state["env_steps"] >= before
    because = f"what {' and '.join(annealed)} lets fall came to 0 at {before} env steps and never rises again"
    remedy = "start a new run with a larger budget and another --out, or with that set to false"
    same = wanted.budget == saved.budget
    if state["state"] == "done" and same and at_rest:
        raise BadRun(f"{run.path} is {state['reason']}; {because}; {remedy}")
    refuse_done(run, same)
    if at_rest and after > before:
        raise BadJob(f"budget.env_steps = {after} would teach {run.path} nothing: {because}; {remedy}")
    return wanted
