"""A run that was stopped by a signal or killed, and resumed, equals the run that was never interrupted: every array.

Two methods, two Gymnasium environments, two topologies and two ways to be cut short: pairs of them in four runs, where
SIGKILL goes with CartPole. tests/learning/restarts.py runs all sixteen.

Mutations seen to fail: a learning rate that falls over another budget; a replay of other moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_rl.storage import checkpoint
from tests.run.program import checkpoints, ended, hpc_rl, kill_everything, learning, started, state, wait_for, write_job
from tests.run.test_run_resume import assert_equal

A2C = """algorithm = "a2c"
topology = "{topology}"
[a2c]
unroll = 5
hidden = [8]
lstm = 4
normalize_observation = true
anneal = false
"""
MORE = 800  # env steps after the restart


def job_of(folder: Path, method: str, environment: str, topology: str) -> Path:
    """A job of four columns without an end; of A2C with a memory and a normaliser."""
    ranks = {"solo": 1, "allreduce": 2}[topology]
    path = write_job(folder, "ppo", ranks, environment=environment, topology=topology)
    text = path.read_text()
    if method == "a2c":
        text = A2C.format(topology=topology) + text[text.index("\n[environment]") :]
    path.write_text(text.replace("interval_s = 0.5", "interval_s = 0.2"))
    return path


def last_of_both(folder: Path, method: str, environment: str, topology: str, how: str) -> tuple[Any, Any]:
    """(state, meta) of the last checkpoint of a run that was cut short and resumed, and of one that never was."""
    job, run, whole = job_of(folder, method, environment, topology), folder / "run", folder / "whole"
    ranks = {"solo": 1, "allreduce": 2}[topology]
    with started("run", job, "--out", run) as process:
        wait_for(lambda: learning(run, ranks) and checkpoints(run), process)
        if how == "kill":
            kill_everything(run)
        else:
            process.terminate()
            assert ended(process).code == 0 and state(run)["state"] == "stopped"
    begun = checkpoint.load(checkpoints(run)[-1])[1]["env_steps"]
    for arguments in ((run, "--resume"), (whole,)):
        done = hpc_rl("run", job, "--out", *arguments, "--set", f"budget.env_steps={begun + MORE}")
        assert done.code == 0, done.err
        assert "a new episode begins" not in done.out + done.err
    assert state(run)["attempt"] == 1
    return checkpoint.load(checkpoints(run)[-1]), checkpoint.load(checkpoints(whole)[-1])


@pytest.mark.parametrize(
    ("method", "environment", "topology", "how"),
    [
        ("ppo", "CartPole-v1", "allreduce", "kill"),
        ("ppo", "Pendulum-v1", "solo", "signal"),
        ("a2c", "CartPole-v1", "solo", "kill"),
        ("a2c", "Pendulum-v1", "allreduce", "signal"),
    ],
)
def test_a_restart_equals_the_run_that_was_never_interrupted(
    method: str, environment: str, topology: str, how: str, tmp_path: Path
) -> None:
    (mine, my_meta), (other, other_meta) = last_of_both(tmp_path, method, environment, topology, how)
    assert_equal(mine, other)
    for name in ("env_steps", "updates", "episodes", "recent", "steps", "score"):
        assert my_meta[name] == other_meta[name], name
    assert any(text for text in mine["sampler"]["environment"]["moves"])  # so episodes were open
