"""A method that reads the environment's Rules finds them wherever a policy or a learner is made.

The method looks one move ahead. On toy/catch with two rows and three columns every game is one move, so it wins all of
them untrained, where a policy that guesses wins one in three.

Mutations seen to fail: `agent_of` without rules; `bind` with rules for the policy alone; rules made with NumPy; a
`Step` without state in `footprint`, and in the roofline; `Step.state` left out by the sampler.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import hpc_rl.algorithms
from hpc_rl import job as jobs
from hpc_rl import methods, startup
from hpc_rl.bench import roofline
from hpc_rl.cli import cli
from hpc_rl.conclusion import conclude
from hpc_rl.evaluation import evaluate_run
from hpc_rl.experience import Unsuited
from hpc_rl.show import render
from hpc_rl.storage import run_dir
from hpc_rl.storage.untrusted import read_json
from hpc_rl.transport.local import alone
from tests.contract.seats import run_job

METHOD = '''"""Looks one move ahead: argmax_a r(x, a)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hpc_rl.algorithms import base
from hpc_rl.config import PositiveInt
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.optim.flat import flatten
from hpc_rl.types import ActOutput, UpdateResult

TOPOLOGIES = ("solo", "allreduce")


@dataclass(frozen=True)
class Config:
    unroll: PositiveInt = 4

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0),))


class Lookahead:
    noise = fragment_noise = 0
    extras, carry = {}, {}

    def __init__(self, spec, rules):
        self.net, self.rules, self.actions = nn.Linear(1, 1), rules, spec.actions.sizes[0]

    def initial_carry(self, columns):
        return {}

    def act(self, step, carry, exploration, noise):
        u = torch.zeros(len(step.first), self.rules.move_uniforms, dtype=torch.float64)
        moves = [torch.full_like(step.first, a, dtype=torch.int64) for a in range(self.actions)]
        reward = torch.stack([self.rules.move(step.state, action, u)[1] for action in moves], -1)
        return ActOutput(reward.argmax(-1), carry, {})


def policy(config, spec, rules):
    if rules is None:
        raise Unsuited(f"lookahead needs Rules, and {spec.id} is not made of them; use a toy")
    return Lookahead(spec, rules)


class Learner(base.Learner):
    def __init__(self, config, spec, rules, policy, group):
        self.policy, self.group, self.weights, self.optimizers = policy, group, flatten(policy.net), {}
        self.symmetries = len(rules.symmetries)

    def update(self, batches, progress):
        return UpdateResult({"symmetries": float(self.symmetries)})

    def state(self):
        return {}

    def load(self, state):
        pass


ALGORITHM = base.Algorithm(Config, policy, Learner)
'''


@pytest.fixture(autouse=True)
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method as a file of algorithms/."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "lookahead.py").write_text(METHOD)
    monkeypatch.setattr(methods, "FOLDER", folder)
    monkeypatch.setattr(hpc_rl.algorithms, "__path__", [str(folder), *hpc_rl.algorithms.__path__])
    yield
    sys.modules.pop("hpc_rl.algorithms.lookahead", None)


def table(topology: str, ranks: int = 1, **resources: Any) -> dict[str, Any]:
    return {
        "name": "lookahead",
        "algorithm": "lookahead",
        "topology": topology,
        "environment": {"id": "toy/catch", "columns": 4, "arguments": {"rows": 2, "columns": 3}},
        "budget": {"env_steps": 600},
        "resources": {"ranks": ranks, "threads": 1, "precision": "fp32", "device": "cpu", **resources},
        "evaluate": {"every_steps": 100, "episodes": 5},
    }


def check_won(folder: Path) -> None:
    summary = read_json(folder / "summary.json", {})
    assert summary["mean_return_100"] == summary["evaluated_return"] == summary["greedy_return"] == 1.0


@pytest.mark.parametrize(("topology", "resources"), [("solo", {}), ("allreduce", {"ranks": 3, "evaluators": 1})])
def test_training_ranks_and_the_evaluator_have_rules(topology: str, resources: Any, tmp_path: Path) -> None:
    job_run = run_job(table(topology, **resources), tmp_path / "run")
    assert [learner.symmetries for learner in job_run.learners.values()] == [1] * len(job_run.plan.learners)
    check_won(tmp_path / "run")
    result = evaluate_run(tmp_path / "run", 7, None, None)
    assert result["greedy"]["mean"] == result["sampled"]["mean"] == 1.0


class NeverStopped:
    file: Path | None = None

    def __call__(self) -> bool:
        return False


def test_a_started_rank_has_rules(tmp_path: Path) -> None:
    job = jobs.parse(table("solo"))
    run = run_dir.create(tmp_path / "run", jobs.dumps(job))
    threads = torch.get_num_threads()
    try:
        context = startup.make_context(run.path, alone(), NeverStopped())  # type: ignore[arg-type]
        outcome = jobs.topology("solo").run(context)
        conclude(context, outcome)
    finally:
        torch.set_num_threads(threads)
    check_won(run.path)


def test_show_and_the_roofline_have_rules_and_a_state() -> None:
    job = jobs.parse(table("solo"))
    assert "where it needs numbers" not in render(job)
    assert roofline.measure(job, 0.05, cores=1).infer_per_s > 0


def test_show_refuses_what_has_no_rules(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('algorithm = "lookahead"\ntopology = "solo"\n[environment]\nid = "CartPole-v1"\n')
    result = CliRunner().invoke(cli, ["show", str(job)])
    assert isinstance(result.exception, Unsuited)
    assert str(result.exception) == "lookahead needs Rules, and CartPole-v1 is not made of them; use a toy"
