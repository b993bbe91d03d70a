"""What a resumed run may change, and that the command which started it goes on with --resume.

Mutations seen to fail: the shipped job compared without its --set; "auto" taken for another precision; a larger budget
for a learning rate of 0.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.resume import again
from hpc_rl.status import states
from hpc_rl.storage.metrics import Metrics
from hpc_rl.storage.run_dir import BadRun, RunDir, create
from tests.run.program import ended, hpc_rl, learning, started, state, wait_for, write_job

MAY = {
    "resources.device": "cpu",
    "resources.threads": "3",
    "resources.deadline_s": "600",
    "resources.ranks": "4",
    "resources.evaluators": "1",
    "resources.reduction": "gloo",
    "environment.processes": "2",
    "budget.env_steps": "5000",
    "output.record": "0.5",
    "checkpoint.keep": "1",
    "evaluate.every_steps": "100",
}
MAY_NOT = {
    "seed": "7",
    "sampler": "alternating",
    "environment.id": "toy/counter",
    "environment.columns": "8",
    "environment.arguments": "{ rows = 4 }",
    "resources.precision": "bf16",
    "ppo.learning_rate": "0.1",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has settled what is decided at the start."""
    job = jobs.load(write_job(tmp_path, "ppo", 2, env_steps=1000), ("resources.device=cuda", "resources.threads=8"))
    return create(tmp_path / "run", jobs.dumps(job))


@pytest.mark.parametrize("key", MAY)
def test_what_a_resumed_run_may_change(key: str, run: RunDir) -> None:
    section, _, name = key.partition(".")
    value = getattr(getattr(again(run, [f"{key}={MAY[key]}"]), section), name)
    assert str(value) == MAY[key] or value == float(MAY[key])


@pytest.mark.parametrize("key", MAY_NOT)
def test_what_a_resumed_run_may_not_change(key: str, run: RunDir) -> None:
    with pytest.raises(BadJob, match=rf"^{key} cannot change on --resume; only budget.*resources.threads.* can"):
        again(run, [f"{key}={MAY_NOT[key]}"])


def test_a_device_that_is_gone_is_decided_again_and_the_precision_is_not(run: RunDir) -> None:
    undecided = ["resources.device=auto", "resources.threads=0", "resources.precision=auto"]
    resources = again(run, undecided).resources
    assert (resources.device, resources.threads, resources.precision) == ("auto", 0, "fp32")


@pytest.mark.parametrize("key", ["anneal", "anneal_clip"])
def test_a_larger_budget_is_refused_where_the_learning_rate_came_to_zero(key: str, tmp_path: Path) -> None:
    job = jobs.load(write_job(tmp_path, "ppo", 2, env_steps=1000), (f"ppo.{key}=true",))
    run = create(tmp_path / "run", jobs.dumps(job))
    run.write_state(state="stopped", env_steps=900)
    assert again(run, ["budget.env_steps=5000"]).budget.env_steps == 5000  # goes on from a tenth of the rate
    run.write_state(state="done", env_steps=1024, reason="done: budget of 1000 env steps used")
    with pytest.raises(
        BadJob, match=rf"^budget.env_steps = 5000 would teach .* what ppo.{key} lets fall came to 0 at 1000"
    ):
        again(run, ["budget.env_steps=5000"])
    with pytest.raises(BadRun, match=r"is done: budget of 1000 env .*; what .* came to 0.* set to false"):
        again(run, [])


def test_a_budget_of_updates_is_what_the_learning_rate_falls_by(tmp_path: Path) -> None:
    job = jobs.load(write_job(tmp_path, "ppo", 2), ("ppo.anneal=true", "budget.updates=10"))
    run = create(tmp_path / "run", jobs.dumps(job))
    run.write_state(state="done", env_steps=1280, updates=10, reason="done: budget of 10 updates used")
    with pytest.raises(BadJob, match=r"^budget.updates = 20 would teach .* came to 0 at 10 updates"):
        again(run, ["budget.updates=20"])
    run.write_state(state="stopped", env_steps=1000, updates=8)
    assert again(run, ["budget.updates=20"]).budget.updates == 20


def test_a_constant_rate_goes_on_with_a_larger_budget(run: RunDir) -> None:
    run.write_state(state="done", env_steps=1024, reason="done: budget of 1000 env steps used")
    assert again(run, ["budget.env_steps=5000"]).budget.env_steps == 5000
    with pytest.raises(BadRun, match="raise that limit to go on"):
        again(run, ["checkpoint.keep=1"])


def test_the_command_that_started_a_run_goes_on_with_resume(tmp_path: Path) -> None:
    settings = (
        "environment.id=toy/catch", "environment.arguments={ rows = 6 }", "ppo.hidden=[8]", "seed=3",
        "resources.precision=auto", "resources.threads=0", "resources.device=auto", "budget.env_steps=100000000",
        "output.metrics_s=0.2",
    )  # fmt: skip
    command = ["run", "ppo_cartpole", "--out", tmp_path / "run"]
    command += [part for setting in settings for part in ("--set", setting)]
    with started(*command) as process:
        wait_for(lambda: learning(tmp_path / "run", 1), process)
        process.terminate()
        assert ended(process).code == 0
    with started(*command, "--resume") as process:
        wait_for(lambda: learning(tmp_path / "run", 1, attempt=1), process)
        process.terminate()
        assert ended(process).code == 0
    assert state(tmp_path / "run")["attempt"] == 1
    other = hpc_rl("run", "ppo_cartpole", "--out", tmp_path / "run", "--resume")
    assert other.code == 2 and "environment.id" in other.err and "'toy/catch'" in other.err


def test_status_counts_no_env_steps_of_an_attempt_that_was_killed(run: RunDir) -> None:
    def shown() -> int:
        (line,) = states([run], lambda text: None)
        return line.env_steps

    for attempt, begin, step in ((0, 0, 300), (1, 150, 160)):
        run.write_state(state="running", env_steps=begin, attempt=attempt)
        assert shown() == begin, "what attempt 0 did beyond its checkpoint was given up"
        to = Metrics(run.metrics, "worker-0", attempt=attempt, begin=begin)
        to.write(step, {"env_steps": step})
        to.close()
        assert shown() == step
