"""Networks that begin as those of other runs' policies, once, and what is said where they cannot.

Mutations seen to fail: the newest checkpoint's network in place of the best; parts exchanged; a start that is read
again by a resumed run; one that is not read at all; a network of another width taken.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl import preflight
from hpc_rl.agent import agent_of
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.saved_policy import saved_policy
from hpc_rl.starts import begin
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, create, open_run
from tests.contract.seats import Ran, newest, run_job

SIZE = {"channels": 4, "blocks": 1}


def teacher(folder: Path, id: str = "toy/tictactoe", **method: Any) -> Path:
    """A run of behaviour cloning with two checkpoints of random weights, the first of which is its best."""
    own = {**SIZE, "source": "nowhere", **method}
    job = jobs.parse({"algorithm": "bc", "topology": "solo", "environment": {"id": id}, "bc": own})
    directory, agent = create(folder, jobs.dumps(job)), agent_of(job)
    learn = agent.make_learner(agent.make_policy(), Alone())
    meta = {
        "env_steps": 0, "updates": 1, "episodes": 100, "recent": [], "best": 1.0, "score": 1.0,
        "scored_by": Counters.scored_by(job), "steps": {str(k): 0 for k in range(8)}, "attempt": 0,
        "fingerprint": fingerprint(job, agent.spec), "evaluated": None, "judged_at": 0,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(len(folder.name))
    for number in (1, 2):
        learn.weights.data.copy_(torch.randn(len(learn.weights.data), generator=generator))
        path = checkpoint.save(directory, number, learner_state(learn), meta)
        if number == 1:
            checkpoint.mark_best(directory, path, 1.0)
    return directory.path


def table(supervised: Path, rollouts: Path, updates: int = 1) -> dict[str, Any]:
    named = {"supervised": str(supervised), "rollouts": str(rollouts)}
    return {
        "algorithm": "alphago",
        "topology": "solo",
        "environment": {"id": "toy/tictactoe", "columns": 4},
        "alphago": {**SIZE, **named, "pool": 2},
        "budget": {"updates": updates, "env_steps": 10_000},
        "resources": {"ranks": 1, "threads": 1},
    }


def networks(job_run: Ran) -> Any:
    """Of the policy in its newest checkpoint."""
    policy = agent_of(job_run.job).make_policy()
    flatten(policy.net).data.copy_(newest(job_run)[0]["weights"])
    return policy.net


def test_a_new_run_begins_with_them_and_a_resumed_one_with_its_checkpoint(tmp_path: Path) -> None:
    runs = (teacher(tmp_path / "taught"), teacher(tmp_path / "fast", patterns=True))
    ran = run_job(table(*runs), tmp_path / "run")
    net = networks(ran)
    for part, run in zip((net.prior, net.rollout), runs, strict=True):
        directory = open_run(run)
        job = jobs.load(directory.job_file)
        best = saved_policy(directory, job, agent_of(job), None, print)[0].net
        assert all(torch.equal(x, best.state_dict()[name]) for name, x in part.state_dict().items())
    assert all(torch.equal(x, y) for x, y in zip(net.pool[0].parameters(), net.prior.parameters(), strict=True))
    for run in runs:
        shutil.rmtree(run)
    again = networks(run_job(table(*runs, updates=2), tmp_path / "again", resume=ran))
    assert all(torch.equal(x, y) for x, y in zip(again.prior.parameters(), net.prior.parameters(), strict=True))
    assert not torch.equal(again.policy.last.weight, net.policy.last.weight)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    fast = teacher(tmp_path / "fast", patterns=True)
    cases = {
        "wide' holds a network whose torso.first.weight is [8, 2, 3, 3], and this one's is [4, 2, 3, 3]": {
            "channels": 8
        },
        "fast' holds a network without torso.first.weight; give both jobs the same network": {"patterns": True},
        "four' was trained in toy/connect_four, which is another game than this toy/tictactoe": {
            "id": "toy/connect_four"
        },
    }
    for words, method in cases.items():
        run = tmp_path / words[:4]
        job = jobs.parse(table(run if run == fast else teacher(run, **method), fast))
        agent = agent_of(job)
        with pytest.raises(BadRun, match="alphago.supervised = '.*" + re.escape(words)):
            begin(agent.make_policy(), agent.starts, agent.spec)


def test_a_run_that_is_not_there_is_found_before_any_rank_starts(tmp_path: Path) -> None:
    fast = teacher(tmp_path / "fast", patterns=True)
    job = jobs.parse(table(tmp_path / "none", fast))
    with pytest.raises(BadRun, match="none"):
        preflight.check(job, jobs.plan(job))
    for file in (fast / "checkpoints").glob("*.h5"):
        file.unlink()
    job = jobs.parse(table(Path(), fast) | {"alphago": {**SIZE, "rollouts": str(fast)}})
    with pytest.raises(BadRun, match=r"alphago\.rollouts = '.*fast' holds no checkpoint yet; let that run end first"):
        preflight.check(job, jobs.plan(job))


def test_matches_are_not_learned_from(tmp_path: Path) -> None:
    game = {"id": "toy/tictactoe", "arguments": {"opponent": "random"}}
    job = jobs.parse({"algorithm": "alphago", "topology": "solo", "environment": game})
    with pytest.raises(Exception, match="alphago learns from both sides of the games"):
        preflight.check(job, jobs.plan(job))
