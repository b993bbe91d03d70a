"""`hpc-rl selftest`: one small job on the user's own cluster that is signalled, requeued, resumed and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc_rl.doctor import Check
from hpc_rl.launchers import slurm
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import command_line
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.submit import submit, tasks

JOB = "impala_catch"
CHANGES = ("checkpoint.interval_s=3", "budget.env_steps=1000000000", "resources.deadline_s=30")


def selftest(folder: Path, options: Options, ranks: int, queue_s: float, poll_s: float = 1.0) -> Iterator[Check]:
    """Each check as it is known; the first that fails is the last. ``queue_s``: the longest wait in the queue.

    Raises:
        BadJob, BadRun, SlurmError: nothing could be sent.
    """
    job = submit(tasks(JOB, (*CHANGES, f"resources.ranks={ranks}"), None, ()), folder, options, False)
    run = RunDir(folder)
    yield Check("submit", True, f"job {job} in {folder}")
    began = time.monotonic()

    def step(name: str, done: Callable[[], bool], limit: float, text: Callable[[], str], remedy: str) -> Check:
        """Wait for ``done``, looking at what the run and SLURM say meanwhile."""
        end = time.monotonic() + limit
        while not done():
            state, seen = run.read_state(), slurm.look([job]).get(job)
            over = state["state"] == "failed" or (seen is not None and not seen.active)
            if over or time.monotonic() > end:
                known = f"SLURM says {seen.state} {seen.reason}".strip() if seen else "SLURM does not know the job"
                return Check(name, False, f"{state['reason'] or 'no word from the run'} ({known}); {remedy}")
            time.sleep(poll_s)
        return Check(name, True, text())

    def attempt(number: int, more_than: int = 0) -> Callable[[], bool]:
        def reached() -> bool:
            state = run.read_state()
            return bool(state["state"] == "running" and state["attempt"] >= number and state["env_steps"] > more_than)

        return reached

    def started() -> bool:
        return bool(run.read_state()["state"] != "pending")

    def stopped() -> bool:
        return bool(run.read_state()["state"] == "stopped")

    def resumed() -> bool:
        return attempt(1, steps[0])()

    steps: list[int] = []

    def signal() -> bool:
        steps.append(run.read_state()["env_steps"])
        slurm.signal_batch(job)
        return True

    def saved() -> str:
        return f"saved and requeued after {steps[0]:,} env steps: {run.read_state()['reason']}"

    def stop() -> bool:
        run.request_stop()
        return True

    look = f"look at hpc-rl logs {command_line([str(folder)])}"
    yield from _until_one_fails(
        lambda: step("start", started, queue_s, lambda: f"{time.monotonic() - began:.0f} s after sbatch", look),
        lambda: step("ranks", attempt(0), 60, lambda: _table(run, ranks), f"see slurm/README.md, PMI; {look}"),
        lambda: step("signal", signal, 5, lambda: "USR1 sent to the batch script", look),
        lambda: step("save, requeue", lambda: not attempt(0)(), 60, saved, look),
        lambda: step("resume", resumed, queue_s + 180, lambda: "goes on beyond its checkpoint", look),
        lambda: step("STOP file", stop, 5, lambda: "asked to stop", look),
        lambda: step("end", stopped, 60, lambda: run.read_state()["reason"], look),
        lambda: _locking(folder),
    )


def _until_one_fails(*checks: Callable[[], Check]) -> Iterator[Check]:
    for check in checks:
        found = check()
        yield found
        if found.ok is False:
            return


def _table(run: RunDir, ranks: int) -> str:
    lines = (run.logs / "ranks.log").read_text(errors="replace").splitlines()
    at = max(k for k, line in enumerate(lines) if line.split()[:2] == ["rank", "role"])
    return f"all {ranks}\n" + "\n".join(lines[at : at + ranks + 1])


def _locking(folder: Path) -> Check:
    from hpc_rl.storage.locking import check_locking

    found = check_locking(folder)
    note = "" if found == "works" else "; files have one writer each, so never start two jobs in one folder"
    return Check("HDF5 locking", True if found == "works" else None, f"{found}{note}")
