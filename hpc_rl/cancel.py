"""`hpc-rl cancel`: waiting jobs end at once, running ones after they have saved. No torch, no MPI."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from hpc_rl import then_analyze
from hpc_rl.launchers import causes, slurm
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.storage.run_dir import BadRun, RunDir

STOP_S, LOOK_S = 180.0, 2.0  # how long a clean stop may take, and between looks


def cancel_runs(runs: Sequence[RunDir], now: bool = False) -> list[str]:
    """Stop the jobs of these runs: waiting ones at once, running ones after they have saved; a sentence for each.

    Raises:
        Unasked: SLURM did not answer; what could be done without it is done.
    """
    try:
        return _cancel(runs, now)
    except slurm.SlurmError as error:
        raise Unasked(str(error), [_by_file(run) for run in runs]) from None


class Unasked(slurm.SlurmError):
    """SLURM does not answer; ``sentences`` state for each run what was done nevertheless."""

    def __init__(self, message: str, sentences: list[str]) -> None:
        super().__init__(message)
        self.sentences = sentences


def _by_file(run: RunDir) -> str:
    """The STOP file needs no controller: a rank, or the batch script, finds it."""
    with contextlib.suppress(BadRun):
        if (state := run.read_state()["state"]) not in ("pending", "running"):
            return f"{run.path}: {state} already"
    run.request_stop(_who())
    return f"{run.path}: STOP is written there: a job that runs saves and ends, one that waits ends when it starts"


def _who() -> str:
    return f"cancelled by {causes.user(os.getuid())} with hpc-rl cancel"


def _cancel(runs: Sequence[RunDir], now: bool) -> list[str]:
    ids = {run.path: job_ids(run) for run in runs}
    statuses = slurm.query([job for jobs_of_run in ids.values() for job in jobs_of_run])
    active = {
        run.path: [statuses[job] for job in ids[run.path] if job in statuses and statuses[job].active] for run in runs
    }
    for run in runs:
        if active[run.path]:
            run.request_stop(_who())  # first, so that a job that begins right now ends itself
    waiting = [item.job for jobs_of_run in active.values() for item in jobs_of_run if item.state == "PENDING"]
    at_work = [item.job for jobs_of_run in active.values() for item in jobs_of_run if item.state != "PENDING"]
    analyses = then_analyze.cancel(runs)  # before its runs end, for that would start it
    slurm.cancel(waiting)
    late = at_work if now else _outlast(at_work)
    slurm.cancel(late)
    ended_runs = [
        _cancelled(run, [item.job for item in active[run.path]], set(waiting), set(late), now) for run in runs
    ]
    return [*ended_runs, *analyses]


def _outlast(jobs: Sequence[str]) -> list[str]:
    """Those of the jobs that are still there when the time for a clean stop is over."""
    remaining, deadline = list(jobs), time.monotonic() + STOP_S
    while remaining and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        statuses = slurm.query(remaining)
        remaining = [job for job in remaining if job in statuses and statuses[job].active]
    return remaining


def _cancelled(run: RunDir, jobs: Sequence[str], waiting: set[str], late: set[str], now: bool) -> str:
    if not jobs and (not job_ids(run) or not slurm.available()) and run.read_state()["state"] == "running":
        return _by_file(run)  # of hpc-rl run, or seen from a host without SLURM
    if not jobs:
        return f"{run.path}: no job is queued or running"
    if waiting.issuperset(jobs):
        sentence = f"{_who()} while it waited"
    elif late.isdisjoint(jobs):
        state = run.read_state()
        command = causes.pasted(state["next"])
        return f"{run.path}: {state['reason']}" + (f"; go on with {command}" if command else "")
    elif now:
        sentence = f"{_who()} --now, without saving; the last checkpoint stands"
    else:
        sentence = f"{_who()}, and did not stop within {STOP_S:.0f} s; the last checkpoint stands"
    command = causes.go_on(run, "cancelled")
    run.write_state(state="stopped", reason=f"stopped: {sentence}", cause="cancelled", next=command)
    return f"{run.path}: {sentence}; go on with {command}"
