"""The policy that a run has saved: of its best checkpoint, else of the newest, or of a file that is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_rl.agent import Agent
from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.runtime.restoring import Check, playable
from hpc_rl.settings import Job
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, RunDir


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
