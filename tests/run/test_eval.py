"""What `hpc-rl eval` says of a policy: games of its own, greedy beside sampled, how many of them differ.

Mutations seen to fail: the evaluator's seeds; the digest of returns alone; greedy games under both names; every set
played with the job's own arguments, or without them; success or the mean of the first set for all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hpc_rl import cli, evaluation
from hpc_rl import job as jobs
from hpc_rl.envs import make as environments
from hpc_rl.envs.make import describe
from hpc_rl.optim.alone import Alone
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.samplers.base import episode_seeds
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import create
from hpc_rl.types import Array

ONE_START = '''
import gymnasium


class OneStart(gymnasium.Wrapper):
    """CartPole that begins every game alike."""

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=7, options=options)


class Told(gymnasium.Wrapper):
    """Tells whether the game ended in success: always, or never."""

    def __init__(self, env, success):
        super().__init__(env)
        self.success = success

    def step(self, action):
        *moved, info = self.env.step(action)
        return (*moved, {**info, "is_success": self.success})


def make(chance=False, moves=30, success=None):
    env = gymnasium.make("CartPole-v1", max_episode_steps=moves)
    env = env if success is None else Told(env, success)
    return env if chance else OneStart(env)
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a run of an untrained policy with one checkpoint, marked best or not."""
    (tmp_path / "one_start.py").write_text(ONE_START)
    monkeypatch.syspath_prepend(tmp_path)
    counter = iter(range(9))

    def made(best: bool = True, every: int = 0, sets: Any = (), **arguments: Any) -> Path:
        table = {
            "algorithm": "a2c",
            "topology": "solo",
            "environment": {"id": "one_start:make", "arguments": arguments},
        }
        job = jobs.parse({**table, "evaluate": {"every_steps": every, "episodes": 12, "arguments": sets}})
        directory = create(tmp_path / f"run{next(counter)}", jobs.dumps(job))
        spec = describe(job.environment.id, job.environment.arguments)
        policy = jobs.algorithm("a2c").policy(jobs.method_config(job), spec, None)
        learn = jobs.algorithm("a2c").learner(jobs.method_config(job), spec, None, policy, Alone())
        meta = {
            "env_steps": 1234, "updates": 1, "episodes": 100, "recent": [], "best": 21.0, "score": 21.0,
            "scored_by": Counters.scored_by(job), "steps": {str(k): 0 for k in range(8)}, "attempt": 0,
            "fingerprint": fingerprint(job, spec), "evaluated": None, "judged_at": 0,
        }  # fmt: skip
        path = checkpoint.save(directory, 1, learner_state(learn), meta)
        if best:
            checkpoint.mark_best(directory, path, 21.0)
        return directory.path

    return made


def test_games_have_seeds_that_chose_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seeds = run(chance=True), list[Array]()
    original = environments.make

    def watched(*arguments: Any) -> Any:
        environment = original(*arguments)
        reset = environment.reset
        environment.reset = lambda new_seeds: (seeds.append(new_seeds), reset(new_seeds))[1]  # type: ignore[method-assign,func-returns-value]
        return environment

    monkeypatch.setattr(evaluation, "make", watched)
    evaluation.evaluate_run(folder, 5, None, None)
    chosen_by = episode_seeds(1, "evaluate", range(5), 0)
    trained_on = episode_seeds(1, "episode", range(5), 0)
    assert len(seeds) == 2 and np.array_equal(*seeds)  # greedy and sampled games begin alike
    assert not set(seeds[0].tolist()) & {*chosen_by.tolist(), *trained_on.tolist()}


def test_games_of_one_start_are_one_greedy_game_and_that_is_said(run: Any) -> None:
    result = evaluation.evaluate_run(run(), 20, None, None)
    assert result["greedy"]["distinct_games"] == result["greedy"]["distinct_returns"] == 1
    assert result["greedy"]["low"] == result["greedy"]["mean"] == result["greedy"]["high"]
    assert result["sampled"]["distinct_games"] > 10 and result["sampled"]["low"] < result["sampled"]["high"]
    lines, remarks = evaluation.told(result)
    assert "20 games, 1 distinct" in lines[1] and remarks[0].startswith("only 1 of the 20 greedy games differ")


def test_equal_returns_of_different_games_are_different_games(run: Any) -> None:
    result = evaluation.evaluate_run(run(chance=True), 20, None, None)
    assert result["greedy"]["distinct_games"] == 20 > result["greedy"]["distinct_returns"]
    assert evaluation.told(result)[1] == []


def test_what_the_best_was_chosen_by_is_said(run: Any) -> None:
    by_training = evaluation.told(evaluation.evaluate_run(run(), 2, None, None))[0][-1]
    assert "chosen as the best by the mean of the last 100 training games, which sample actions: 21.00" in by_training
    by_evaluation = evaluation.told(evaluation.evaluate_run(run(every=100), 2, None, None))[0][-1]
    assert "the mean of 12 greedy games during training: 21.00" in by_evaluation
    newest = run(best=False)
    assert evaluation.told(evaluation.evaluate_run(newest, 2, None, None))[0][-1].startswith(
        "newest checkpoint, not chosen"
    )
    result = evaluation.evaluate_run(newest, 2, newest / "checkpoints" / "000000001.h5", None)
    assert result["chosen"] == "named"


@pytest.mark.parametrize("episodes", [1, 3])
def test_the_command_prints_both_and_json_is_json(run: Any, episodes: int) -> None:
    folder = run(chance=True)
    arguments = ["eval", str(folder), "--episodes", str(episodes)]
    text = CliRunner().invoke(cli.cli, arguments).stdout.splitlines()
    assert [line.split()[0] for line in text] == ["mean", "greedy", "sampled", "chosen"] and "nan" not in " ".join(text)

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    result = json.loads(CliRunner().invoke(cli.cli, [*arguments, "--json"]).stdout, parse_constant=refused)
    documented = evaluation.evaluate_run.__doc__ or ""
    assert all(f"{key}" in documented for key in [*result, *result["greedy"]])
    assert result["level"] == 0.95 and (result["greedy"]["low"] is None) == (episodes == 1)


def test_every_set_of_arguments_is_played_and_success_is_told(run: Any) -> None:
    folder = run(chance=True, sets=[{"moves": 3, "success": True}, {"moves": 5, "success": False}])
    result = evaluation.evaluate_run(folder, 4, None, None)
    first, other = result["greedy"]["sets"]
    assert first == {"arguments": {"moves": 3, "success": True}, "mean": 3.0, "success": 1.0}
    assert (other["mean"], other["success"]) == (5.0, 0.0)
    assert (result["greedy"]["mean"], result["greedy"]["games"], result["greedy"]["success"]) == (4.0, 8, 0.5)
    text = "\n".join(evaluation.told(result)[0])
    assert "success 50 %" in text and "{'moves': 3, 'success': True}: 3.00; success 100 %" in text
    unknown = evaluation.evaluate_run(run(), 2, None, None)
    assert unknown["greedy"]["success"] is None and unknown["greedy"]["sets"] == []
    assert "success" not in "\n".join(evaluation.told(unknown)[0])
