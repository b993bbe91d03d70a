"""What a run goes on with: its own job, with those changes that a resumed run may make. No torch, no MPI."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.settings import Job
from hpc_rl.storage.run_dir import BadRun, RunDir, refuse_done

CHANGEABLE_ON_RESUME = (
    "budget",
    "output",
    "checkpoint",
    "evaluate",
    "resources.ranks",
    "resources.evaluators",
    "resources.device",
    "resources.threads",
    "resources.deadline_s",
    "resources.reduction",
    "environment.processes",
)


def again(run: RunDir, overrides: Iterable[str]) -> Job:
    """The job of ``run`` with ``key=value`` overrides, checked; nothing is written.

    Raises:
        BadJob: a change that a resumed run may not make, or a larger budget where what is annealed has come to 0.
        BadRun: the run is done, and its budget is the same.
    """
    saved = jobs.load(run.job_file)
    job = resumed(saved, jobs.load(run.job_file, overrides))
    state, unit = run.read_state(), "updates" if saved.budget.updates else "env_steps"  # what is annealed goes by it
    budget_before, budget_after = getattr(saved.budget, unit), getattr(job.budget, unit)
    annealed = [f"{saved.algorithm}.{key}" for key, x in saved.method.items() if key.startswith("anneal") and x is True]
    at_rest = bool(annealed) and state[unit] >= budget_before
    unit_name = unit.replace("_", " ")
    because = f"what {' and '.join(annealed)} lets fall came to 0 at {budget_before} {unit_name} and never rises again"
    remedy = "start a new run with a larger budget and another --out, or with that set to false"
    same_budget = job.budget == saved.budget
    if state["state"] == "done" and same_budget and at_rest:
        raise BadRun(f"{run.path} is {state['reason']}; {because}; {remedy}")
    refuse_done(run, same_budget)
    if at_rest and budget_after > budget_before:
        raise BadJob(f"budget.{unit} = {budget_after} would teach {run.path} nothing: {because}; {remedy}")
    return job


def resumed(saved: Job, job: Job) -> Job:
    """The saved job with the changes that a resumed run may make. Raises BadJob naming the first other one.

    ``resources.precision`` "auto" was decided when the run first started, and means that.
    """
    if job.resources.precision == "auto":
        job = jobs.with_resources(job, precision=saved.resources.precision)
    tables, new_tables = tomllib.loads(jobs.dumps(saved)), tomllib.loads(jobs.dumps(job))
    for section in sorted(tables.keys() | new_tables.keys()):
        old, new = tables.get(section), new_tables.get(section)
        if old == new or section in CHANGEABLE_ON_RESUME or section == "name":
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [f"{section}.{k}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
            keys = [key for key in keys if key not in CHANGEABLE_ON_RESUME]
        else:
            keys = [section]
        if keys:
            raise BadJob(
                f"{keys[0]} cannot change on --resume; only {', '.join(CHANGEABLE_ON_RESUME[:-1])} and "
                f"{CHANGEABLE_ON_RESUME[-1]} can; start a new run with another --out for other changes"
            )
    return job
