"""Methods that learn from goals in hindsight: what their Configs say of items, whole jobs, and what is refused.

Mutations seen to fail: ``relabel_share`` left out; items that need an episode's end drawn before it; what is paid not
handed to a worker's ring or to those of a replay rank; goals looked for after the ranks have started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl import preflight
from hpc_rl.agent import agent_of
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, goal_reward
from hpc_rl.experience import Relabel, Unsuited
from hpc_rl.methods import experience
from hpc_rl.show import render
from tests.contract.seats import run_job
from tests.replay.test_resumed_replay import differing, last

METHODS = ("dqn", "ddpg", "td3", "sac")


@pytest.mark.parametrize("name", METHODS)
def test_a_config_says_which_items_are_relabelled(name: str) -> None:
    (plain,) = experience(name, {}).items
    assert plain.relabel is None and plain.complete == "length"
    for strategy, complete in (
        ("future", "length"),
        ("random", "length"),
        ("final", "episode"),
        ("episode", "episode"),
    ):
        (items,) = experience(name, {"relabel": strategy, "relabel_share": 0.5, "n_step": 3}).items
        assert items.relabel == Relabel(strategy, 0.5)  # type: ignore[arg-type]
        assert items.complete == complete and items.length == 3
    (items,) = experience(name, {"relabel": "future"}).items
    assert items.relabel is not None and items.relabel.share == 0.8, "k = 4"


def table_of(topology: str, **resources: Any) -> dict[str, Any]:
    method = {
        "min_size": 50,
        "capacity": 2000,
        "batch_size": 16,
        "samples_per_insert": 2.0,
        "hidden": [16],
        "unroll": 4,
    }
    return {
        "algorithm": "dqn",
        "topology": topology,
        "environment": {"id": "toy/bitflip", "columns": 4, "arguments": {"bits": 5}},
        "budget": {"env_steps": 300},
        "resources": {"threads": 1, **resources},
        "dqn": {**method, "relabel": "future", "target_low": -50.0, "target_high": 0.0, "discount": 0.98},
    }


@pytest.mark.parametrize(
    ("topology", "resources"),
    [("solo", {"ranks": 1}), ("allreduce", {"ranks": 2}), ("actor_replay_learner", {"ranks": 5, "replays": 2})],
)
def test_goals_are_relabelled_wherever_the_ring_lies(topology: str, resources: Any, tmp_path: Path) -> None:
    """A share of the relabelled moves, in episodes of at most five, led to the very row whose goal they got."""
    seen: list[tuple[int, int]] = []
    real = goal_reward("toy/bitflip", {"bits": 5})

    def counted(achieved: Any, desired: Any) -> Any:
        reward, discount = real(achieved, desired)
        seen.append((reward.size, int((reward == 0).sum())))
        return reward, discount

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpc_rl.agent.goal_reward", lambda id, arguments: counted)
        run_job(table_of(topology, **resources), tmp_path / "run")
    items, reached = np.sum(seen, 0)
    assert len(seen) > 10 and reached / items > 0.2


@pytest.mark.parametrize("strategy", ["future", "episode"])
def test_a_resumed_run_learns_from_the_same_goals(strategy: str, tmp_path: Path) -> None:
    """N env steps and then N leave the bits of 2N: weights, optimiser and replay."""

    def table(env_steps: int) -> dict[str, Any]:
        plain = table_of("solo", ranks=1)
        fixed = {"relabel": strategy, "epsilon_base": 0.3, "epsilon_exponent": 0.0}  # nothing is annealed
        return {**plain, "budget": {"env_steps": env_steps}, "dqn": {**plain["dqn"], **fixed}}

    half = run_job(table(250), tmp_path / "half")
    two, two_meta = last(run_job(table(500), tmp_path / "two", resume=half))
    one, one_meta = last(run_job(table(500), tmp_path / "one"))
    assert one_meta["updates"] == two_meta["updates"] > 40 and differing(one, two) == []


def test_show_says_how_many_items_are_relabelled() -> None:
    text = render(jobs.load("her_bitflip"))
    assert "128 items of 1 move per update, 21 drawn for each env step, 80 % with goals in hindsight (future)" in text
    assert "achieved_goal [15], desired_goal [15]" in text


def test_an_environment_without_goals_is_refused_before_a_rank_starts() -> None:
    job = jobs.parse({**table_of("solo"), "environment": {"id": "toy/catch", "columns": 4}}, "test")
    sentence = r'looks for "achieved_goal" and "desired_goal" .* and toy/catch shows no parts; use an environment with'
    with pytest.raises(Unsuited, match=sentence):
        preflight.check(job, jobs.plan(job))
    with pytest.raises(Unsuited, match=sentence):
        render(job)
    with pytest.raises(Unsuited, match=sentence):
        agent_of(job).make_policy()


def test_an_environment_that_cannot_judge_another_goal_is_refused_before_a_rank_starts() -> None:
    environment = {"id": "tests.envs.test_goal_env:Goals", "columns": 4}
    job = jobs.parse({**table_of("solo"), "environment": environment}, "test")
    for look in (lambda: preflight.check(job, jobs.plan(job)), lambda: render(job)):
        with pytest.raises(BadEnvironment, match=r"has no compute_reward\(achieved_goal, desired_goal, info\), which"):
            look()


def test_fetch_is_learned_in_hindsight(tmp_path: Path) -> None:
    """gymnasium-robotics' goals are found in the parts of its Dict; its rewards are those of its own compute_reward."""
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    id = "gymnasium_robotics:FetchReach-v4"
    try:
        spec = describe(id, {})
    except BadEnvironment as error:  # gymnasium-robotics 1.4 fails on mujoco 4
        pytest.skip(str(error))
    assert {name: part.shape for name, part in spec.parts.items()} == {
        "achieved_goal": (3,), "desired_goal": (3,), "observation": (10,)
    }  # fmt: skip
    reward, discount = goal_reward(id, {})(
        np.zeros((2, 3, 3)), np.array([0.0, 0.02, 0.2])[:, None] * np.ones((2, 3, 3))
    )
    assert reward.tolist() == [[0, 0, -1]] * 2 and discount.tolist() == [[1, 1, 1]] * 2
    table = {
        "algorithm": "sac",
        "topology": "solo",
        "environment": {"id": id, "columns": 1},
        "budget": {"env_steps": 120},
        "resources": {"ranks": 1, "threads": 1},
        "sac": {"min_size": 60, "batch_size": 16, "samples_per_insert": 4.0, "hidden": [16], "relabel": "future"},
    }
    assert run_job(table, tmp_path / "run").run.summary_file.exists()
