"""The policy that a run has saved: of its best checkpoint, else of the newest, or of a file that is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.targets import notice
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.runtime.restoring import Check, playable
from hpc_rl.settings import Job
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, RunDir, open_run
from hpc_rl.types import Spec


def saved_policy(
    run: RunDir, job: Job, agent: Agent, file: Path | None, warn: Callable[[str], None]
) -> tuple[Policy, Path, dict[str, Any]]:
    """The policy of the best (else newest) checkpoint of a run, or of ``file``; that file, and what it says of itself.

    Where the best is damaged, ``warn`` gets a sentence and the newest good one is taken.

    Raises:
        BadRun, NoUsableCheckpoint, CorruptCheckpoint, IncompatibleCheckpoint: no checkpoint that can be read, or one of
            another job.
    """
    path, state, meta = _checkpoint(run, file, playable(agent, fingerprint(job, agent.spec)), warn)
    policy = agent.make_policy()
    flatten(policy.net).data.copy_(state["weights"])
    return policy, path, meta


def policy_of_run(path: Path, named: str, spec: Spec) -> tuple[Policy, Agent]:
    """The policy of a run, or of one of its checkpoints' files, that sees and does what ``spec`` says; its own agent.

    ``named`` is how the job calls it. Raises BadRun, NoUsableCheckpoint, …: as `saved_policy`, or of another task.
    """
    file = path if path.is_file() else None
    run = open_run(path.parent.parent if file else path)
    job = jobs.load(run.job_file)
    if sentence := notice(job.environment.id):  # what is imported for it is named before it is
        print(sentence, file=sys.stderr)
    agent = agent_of(job)
    if (agent.spec.observation, agent.spec.actions) != (spec.observation, spec.actions):
        raise BadRun(
            f"{named} was trained in {agent.spec.id}, which is another game than this {spec.id}; name a run of this one"
        )
    return saved_policy(run, job, agent, file, lambda text: print(f"warning: {text}", file=sys.stderr))[0], agent


def _checkpoint(
    run: RunDir, file: Path | None, check: Check, warn: Callable[[str], None]
) -> tuple[Path, StateDict, dict[str, Any]]:
    best = run.checkpoints / checkpoint.BEST
    if file is not None:
        return (file, *checkpoint.examined(file, check))
    if best.exists():
        try:
            return (best, *checkpoint.examined(best, check))
        except checkpoint.CorruptCheckpoint as error:
            warn(f"{error}; falling back to the newest checkpoint")
    newest = checkpoint.newest(run, warn, check=check)
    if newest is None:
        raise BadRun(f"{run.path} holds no checkpoint yet; let it train for a while first")
    return newest
