"""What a program or a notebook does with jobs and runs; `import hpc_rl` gives all of it by name.

from hpc_rl import load_job, run

print(run(load_job("ppo_cartpole", ["seed=3"]), "runs/seed-3").summary["env_steps"])
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl import job as jobs
from hpc_rl.job import load as load_job
from hpc_rl.settings import Job
from hpc_rl.storage import metrics, run_dir
from hpc_rl.storage.untrusted import read_json

if TYPE_CHECKING:
    from hpc_rl.acting import ActingPolicy
    from hpc_rl.envs.base import Environment

__all__ = ["Run", "RunFailed", "evaluate", "load_job", "open_run", "run"]

AnyPath = str | os.PathLike[str]


class RunFailed(RuntimeError):
    """A run ended as failed; the message says why and names its folder."""


@dataclass(frozen=True)
class Run:
    """A run directory. Nothing of it is open; every call reads what is there now."""

    path: Path

    @property
    def job(self) -> Job:
        """The job as it runs. Raises BadJob."""
        return jobs.load(self.path / "job.toml")

    @property
    def state(self) -> dict[str, Any]:
        """state ("running", "done", …), env_steps, updates, attempt, reason, cause, next. Raises BadRun."""
        return run_dir.RunDir(self.path).read_state()

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; {} before the run's first attempt has ended. Raises Unreadable."""
        try:
            summary: dict[str, Any] = read_json(run_dir.RunDir(self.path).summary_file, {})
        except FileNotFoundError:
            return {}
        return summary

    def metrics(self, rank: str = "") -> list[dict[str, Any]]:
        """The metric lines that count of a rank like "actor-0", in order; without a name those of rank 0.

        Raises:
            BadRun: that rank has written none.
        """
        names = [rank] if rank else metrics.CHIEFS
        files = [file for name in names if (file := self.path / "metrics" / f"{name}.jsonl").is_file()]
        if not files:
            raise run_dir.BadRun(f"{self.path} has no metrics of {rank or 'rank 0'} yet; look into {self.path}/metrics")
        return metrics.series(files[0])

    def policy(self, checkpoint: AnyPath | None = None) -> ActingPolicy:
        """The policy of the best checkpoint, else of the newest, or of the file ``checkpoint``, on the CPU.

        Raises:
            BadRun, NoUsableCheckpoint, CorruptCheckpoint, IncompatibleCheckpoint: there is none that can be read.
        """
        from hpc_rl.acting import ActingPolicy
        from hpc_rl.agent import agent_of
        from hpc_rl.saved_policy import saved_policy

        job, file = self.job, Path(checkpoint) if checkpoint is not None else None
        agent = agent_of(job)
        policy, path, meta = saved_policy(run_dir.RunDir(self.path), job, agent, file, _warn)
        return ActingPolicy(policy, agent.spec, path, meta["env_steps"])

    def environment(self, columns: int = 1) -> Environment:
        """``columns`` copies of the run's environment, in the form in which its policy was trained."""
        from hpc_rl.envs.make import make
        from hpc_rl.opponents import with_opponent

        environment = self.job.environment
        return make(environment.id, with_opponent(environment.id, environment.arguments), columns)

    def resume(self, overrides: Iterable[str] = ()) -> Run:
        """Go on from the newest checkpoint, with ``key=value`` changes of what a resumed run may change.

        Raises:
            BadJob, BadRun: a change that it may not make, or nothing is left to do.
            RunFailed: the run failed.
        """
        from hpc_rl.launchers.leftovers import take_over
        from hpc_rl.resume import again

        directory = run_dir.open_run(self.path)
        job = again(directory, overrides)
        take_over(directory)
        return _trained(job, self.path, resume=True)


def run(job: Job | AnyPath, out: AnyPath | None = None, overrides: Iterable[str] = ()) -> Run:
    """Train a job, a job file or a shipped job's name on this machine, as `hpc-rl run` does, until it ends.

    ``out`` is the run directory, by default runs/<name>. Figures go to stderr; Ctrl-C saves and stops. ``overrides``
    are ``key=value`` texts, for a file or a name.

    Raises:
        BadJob, BadEnvironment, BadRun: found before anything starts.
        RunFailed: the run failed.
    """
    job = job if isinstance(job, Job) else load_job(os.fspath(job), overrides)
    return _trained(job, Path(out) if out is not None else Path("runs") / job.name, resume=False)


def open_run(path: AnyPath) -> Run:
    """The run in a folder. Raises BadRun where there is none."""
    return Run(run_dir.open_run(Path(path)).path)


def evaluate(
    run: Run | AnyPath, episodes: int = 20, checkpoint: AnyPath | None = None, video: AnyPath | None = None
) -> dict[str, Any]:
    """Greedy and sampled games of a run's policy, as `hpc-rl eval --json` gives them; evaluation.py lists the keys.

    A game of two players is judged in matches, as `pool.play_pool` lists.

    Raises:
        BadRun, NoUsableCheckpoint, CorruptCheckpoint, IncompatibleCheckpoint: there is no policy to play.
    """
    from hpc_rl import pool
    from hpc_rl.envs.of_rules import game_of_two
    from hpc_rl.evaluation import evaluate_run

    path = run.path if isinstance(run, Run) else Path(run)
    file, film = (Path(x) if x is not None else None for x in (checkpoint, video))
    environment = open_run(path).job.environment
    if film is None and game_of_two(environment.id, environment.arguments) is not None:
        return pool.play_pool(path, episodes, file, warn=_warn)
    return evaluate_run(path, episodes, file, film, _warn)


def _trained(job: Job, folder: Path, resume: bool) -> Run:
    from hpc_rl import local_run

    outcome = local_run.train(job, local_run.prepare(job, folder, resume))
    if outcome.code:
        raise RunFailed(f"{folder}: {outcome.sentence}")
    return Run(folder)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
