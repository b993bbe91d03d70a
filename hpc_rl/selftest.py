"""`hpc-rl selftest`: one small job on the user's own cluster that is signalled, requeued, resumed and stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_rl.doctor import Check
from hpc_rl.launchers import slurm
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import command_line
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.submit import submit
from hpc_rl.sweep import tasks

JOB = "impala_catch"
CHANGES = (
    "checkpoint.interval_s=3",
    "budget.env_steps=1000000000",
    "budget.stop_at_return=2",  # more than the game pays: it goes on until its STOP file
    "resources.deadline_s=30",
)
LOOK_S = 1.0
MOST_RESTARTS = 3  # it needs one; a cluster on which it fails must not be kept busy
START_S, SAVE_S, REQUEUE_S = 60.0, 60.0, 240.0  # longest waits; a requeued job is held back for some minutes


@dataclass(frozen=True)
class Trial:
    """The job under test."""

    run: RunDir
    job: str
    sent: float  # time.monotonic() of its submission

    @property
    def env_steps(self) -> int:
        return int(self.run.read_state()["env_steps"])

    def learning(self, attempt: int, more_than: int = 0) -> bool:
        """This attempt or a later one has saved more than so many env steps."""
        state = self.run.read_state()
        return bool(state["state"] == "running" and state["attempt"] >= attempt and state["env_steps"] > more_than)


def selftest(folder: Path, options: Options, ranks: int, queue_s: float) -> Iterator[Check]:
    """Each check as it is known; the first that fails is the last. ``queue_s``: the longest wait in the queue.

    Raises:
        BadJob, BadRun, SlurmError: nothing could be sent.
    """
    sent = time.monotonic()
    task_list = tasks(JOB, (*CHANGES, f"resources.ranks={ranks}"), None, ())
    options, warned = replace(options, resume_mode="requeue", max_restarts=MOST_RESTARTS), list[str]()
    (job,) = submit(task_list, folder, options, False, warned.append)
    trial = Trial(RunDir(folder), job, sent)
    yield Check("submit", True, f"job {job} in {folder}")
    yield from (Check("limits", None, text) for text in warned)
    steps: tuple[Callable[[], Check], ...] = (
        lambda: _start(trial, queue_s),
        lambda: _ranks(trial, ranks),
        lambda: _signal(trial),
        lambda: _resume(trial, queue_s),
        lambda: _stop(trial),
        lambda: _locking(folder),
    )
    try:
        for step in steps:
            check = step()
            yield check
            if check.ok is False:
                return
    finally:  # after Ctrl-C too
        with contextlib.suppress(slurm.SlurmError):  # as a rule it is over
            slurm.cancel([job])


def _start(trial: Trial, queue_s: float) -> Check:
    fault = _wait(trial, lambda: trial.run.read_state()["state"] != "pending", queue_s)
    return _check("start", fault, f"{time.monotonic() - trial.sent:.0f} s after sbatch")


def _ranks(trial: Trial, ranks: int) -> Check:
    fault = _wait(trial, lambda: trial.learning(0), START_S)
    if fault:
        return _check("ranks", f"{fault}; slurm/README.md lists the usual reasons", "")
    lines = (trial.run.logs / "ranks.log").read_text(errors="replace").splitlines()
    at = max(k for k, line in enumerate(lines) if line.split()[:2] == ["rank", "role"])
    first = f"the first checkpoint {time.monotonic() - trial.sent:.0f} s after sbatch"
    return _check("ranks", "", f"all {ranks} learn, {first}\n" + "\n".join(lines[at : at + ranks + 1]))


def _signal(trial: Trial) -> Check:
    slurm.signal_batch(trial.job)
    fault = _wait(trial, lambda: not trial.learning(0), SAVE_S)
    return _check("signal", fault, f"saved at {trial.env_steps:,} env steps and requeued")


def _resume(trial: Trial, queue_s: float) -> Check:
    steps = trial.env_steps
    fault = _wait(trial, lambda: trial.learning(1, steps), queue_s + REQUEUE_S)
    return _check("resume", fault, f"went beyond {steps:,} env steps")


def _stop(trial: Trial) -> Check:
    trial.run.request_stop()
    fault = _wait(trial, lambda: trial.run.read_state()["state"] == "stopped", SAVE_S)
    return _check("STOP file", fault, "saved and ended")


def _locking(folder: Path) -> Check:
    from hpc_rl.doctor import locking

    return locking(folder)


def _check(name: str, fault: str, text: str) -> Check:
    return Check(name, not fault, fault or text)


def _wait(trial: Trial, reached: Callable[[], bool], limit: float) -> str:
    """Empty once ``reached()``; else the run's and SLURM's reason why the job failed, ended or took too long."""
    end = time.monotonic() + limit
    while not reached():
        state, status = trial.run.read_state(), slurm.query([trial.job]).get(trial.job)
        over = state["state"] == "failed" or (status is not None and not status.active)
        if over or time.monotonic() > end:
            slurm_state = (
                f"SLURM says {status.state} {status.reason}".strip() if status else "SLURM does not know the job"
            )
            reason = state["reason"] or f"nothing from the run in {limit:.0f} s"
            return f"{reason} ({slurm_state}); see hpc-rl logs {command_line([str(trial.run.path)])}"
        time.sleep(LOOK_S)
    return ""
