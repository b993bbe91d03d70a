"""A mixture's columns move as those of its environments do, whatever stands beside them.

Mutations seen to fail: answers merged in blocks of columns; columns left over by the division given to nobody; actions
not compared; columns of a rank not asked for a multiple.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.envs.base import BadEnvironment, TimeSteps
from hpc_rl.envs.make import describe, make
from hpc_rl.preflight import check

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date")

IDS = ["CartPole-v1", "CartPole-v0"]


@pytest.mark.parametrize("columns", [6, 5, 1])
def test_column_k_plays_the_k_mod_nth_environment(columns: int) -> None:
    whole = make("mixture", {"ids": IDS, "max_episode_steps": 12}, columns)
    alone = [make(IDS[k % 2], {"max_episode_steps": 12}, 1) for k in range(columns)]
    seeds = np.arange(columns) + 40
    assert whole.columns == columns
    assert np.array_equal(whole.reset(seeds), np.concatenate([e.reset(seeds[k : k + 1]) for k, e in enumerate(alone)]))
    generator = np.random.default_rng(3)
    for _ in range(40):  # episodes end, and new ones begin
        action = generator.integers(0, 2, columns)
        whole.send(action)
        answer = whole.recv()
        for k, environment in enumerate(alone):
            environment.send(action[k : k + 1])
            own = environment.recv()
            for item in fields(TimeSteps):
                assert np.array_equal(getattr(answer, item.name)[k : k + 1], getattr(own, item.name), equal_nan=True)
    whole.close()


def test_games_of_atari_share_a_spec() -> None:
    arguments = {"ids": ["ALE/Pong-v5", "ALE/DemonAttack-v5"], "size": 42}
    spec = describe("mixture", arguments)
    assert spec.id == "mixture of ALE/Pong-v5, ALE/DemonAttack-v5" and spec.observation == (4, 42, 42)
    games = make("mixture", arguments, 4)
    observation = games.reset(np.arange(4))
    assert (observation[0] != observation[1]).any() and games.spec == spec
    games.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["ids = None", 'ids = ["ALE/Pong-v5", …]']),
        ({"ids": []}, ["ids = []"]),
        ({"ids": "CartPole-v1"}, ["ids = 'CartPole-v1'"]),
        ({"ids": ["mixture"]}, ["ids = ['mixture']"]),
        ({"ids": ["CartPole-v1", "Cartpole-v0"]}, ["Cartpole-v0", "CartPole-v0"]),
        ({"ids": ["ALE/Pong-v5", "ALE/Breakout-v5"]}, ["ALE/Pong-v5 with actions", "(4,)", "full_action_space = true"]),
        ({"ids": ["CartPole-v1", "Acrobot-v1"]}, ["Acrobot-v1 with (6,)"]),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_told(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadEnvironment) as told:
        describe("mixture", arguments)
    assert all(word in str(told.value) for word in words), told.value


@pytest.mark.parametrize(
    ("columns", "processes", "words"),
    [(9, 0, "cannot share the 3 columns of a rank evenly"), (12, 2, "processes = 2 has no effect on a mixture")],
)
def test_ranks_that_cannot_share_it_are_told_before_they_start(columns: int, processes: int, words: str) -> None:
    environment = {"id": "mixture", "columns": columns, "processes": processes, "arguments": {"ids": IDS}}
    job = jobs.parse({
        "algorithm": "a2c", "topology": "allreduce", "environment": environment, "resources": {"ranks": 3},
    })  # fmt: skip
    with pytest.raises(BadEnvironment, match=words):
        check(job, jobs.plan(job))
