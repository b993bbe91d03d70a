"""`import hpc_rl` is cheap and gives what a program uses: a run is opened, its policy acts, its figures are read.

Mutations seen to fail: torch imported at the top of api.py; the carry dropped between two calls of act; reset that
keeps it; metrics of another rank than rank 0; a failed run returned as if it had ended well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpc_rl
from hpc_rl import api, local_run
from hpc_rl.launchers.base import Outcome
from hpc_rl.storage.run_dir import BadRun
from tests.contract.seats import run_job

TABLE: dict[str, Any] = {
    "algorithm": "a2c",
    "topology": "solo",
    "environment": {"id": "toy/catch", "columns": 4},
    "budget": {"env_steps": 400},
    "resources": {"threads": 1},
    "output": {"metrics_s": 1e-6},
    "a2c": {"unroll": 10, "lstm": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A finished run of a recurrent policy."""
    folder = tmp_path_factory.mktemp("api") / "run"
    run_job(TABLE, folder)
    return hpc_rl.open_run(folder)


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, hpc_rl; assert not {'torch', 'numpy', 'click', 'mpi4py'} & sys.modules.keys()\n"
        "assert hpc_rl.load_job('ppo_cartpole', ['seed=3']).seed == 3; assert 'torch' not in sys.modules\n"
        "assert hpc_rl.__version__.count('.') == 2 and hpc_rl.Algorithm and hpc_rl.Environment\n"
        "from hpc_rl.evaluation import evaluate_run; assert callable(hpc_rl.evaluate) and callable(hpc_rl.run)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(hpc_rl.__all__) <= set(dir(hpc_rl))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        hpc_rl.trian  # noqa: B018
    assert (Path(hpc_rl.__file__).parent / "py.typed").is_file()


def test_figures_of_a_run(run: api.Run) -> None:
    assert run.job.algorithm == "a2c" and run.summary["env_steps"] == run.metrics()[-1]["env_steps"] >= 400
    assert run.metrics() == run.metrics("worker-0") and len(run.metrics()) > 3
    with pytest.raises(BadRun, match="no metrics of actor-3"):
        run.metrics("actor-3")


def test_its_policy_acts_as_its_network_does(run: api.Run) -> None:
    policy, environment = run.policy(), run.environment(columns=3)
    shown = environment.reset(np.arange(3))
    first, carry = np.ones(3, bool), policy._policy.initial_carry(3)
    for _ in range(12):
        action = policy.act(shown, first)
        with torch.no_grad():
            output, _, state = policy._policy.net(torch.tensor(shown)[None], torch.tensor(first)[None], carry["lstm"])
        carry = {"lstm": state}
        assert np.array_equal(action, output[0].argmax(-1).numpy())
        assert policy._carry is not None and torch.allclose(policy._carry["lstm"], state, atol=1e-6)
        environment.send(action)
        steps = environment.recv()
        shown, first = steps.observation, steps.first
    environment.close()
    assert policy.env_steps >= 400 and policy.checkpoint.suffix == ".h5"


def test_reset_forgets_and_the_seed_explores(run: api.Run) -> None:
    policy = run.policy()
    shown = run.environment(columns=3).reset(np.arange(3))
    begun = policy.act(shown, exploration=1.0)
    assert any(not np.array_equal(begun, policy.act(shown, exploration=1.0)) for _ in range(20))
    policy.reset()
    assert policy._carry is None
    assert np.array_equal(begun, policy.act(shown, exploration=1.0))
    with pytest.raises(ValueError, match="2 columns came to a policy that acts in others"):
        policy.act(shown[:2])
    with pytest.raises(ValueError, match=r"one observation x goes in as x\[None\]"):
        policy.act(shown[0])


def test_games_of_a_run(run: api.Run) -> None:
    figures = hpc_rl.evaluate(run, episodes=2)
    assert figures["greedy"]["games"] == 2 and figures == hpc_rl.evaluate(str(run.path), episodes=2)


def test_what_is_no_run_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRun, match="holds no run"):
        hpc_rl.open_run(tmp_path)
    monkeypatch.setattr(local_run, "train", lambda job, directory: Outcome(1, "rank 0 failed"))
    with pytest.raises(api.RunFailed, match="out: rank 0 failed"):
        hpc_rl.run("ppo_cartpole", tmp_path / "out", ["seed=2"])
    assert hpc_rl.open_run(tmp_path / "out").job.seed == 2 and hpc_rl.open_run(tmp_path / "out").summary == {}
