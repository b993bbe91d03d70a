"""Games that judge a policy: in slices they are the games that they are at once, and training notices nothing.

Mutations seen to fail: generators shared with training not swapped; torch's drawn from; the second batch of columns
seeded like the first, in its seeds or in what all columns share; seeds of training; a game that goes on after its slice
taken for its end; a slice that is not given up; long games not cut; weights read at the end of the games; sets played
alike; success told where the environment gives none.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.envs.make import describe, make
from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.evaluation import Judgement
from hpc_rl.runtime.games import Game, Games
from hpc_rl.runtime.judge import GreedyGames
from hpc_rl.samplers.base import EVALUATED_TOGETHER, episode_seeds
from hpc_rl.types import Array

DICE = """
import random
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete

class make(gymnasium.Env):
    def __init__(self, goal=0.0):
        self.observation_space, self.action_space, self.goal = Box(-9, 9, (3,)), Discrete(2), goal

    def frame(self):
        return np.array([self.goal, random.random(), np.random.random()], np.float32)

    def reset(self, *, seed=None, options=None):
        self.left = random.randint(2, 40)
        return self.frame(), {}

    def step(self, action):
        self.left -= 1
        ended = self.left <= 0
        return self.frame(), self.goal + action + np.random.random(), ended, False, {"is_success": self.goal > 0}


class maze(make):
    def __init__(self):
        super().__init__()
        self.walls = np.array([0, random.random(), np.random.random()], np.float32)

    def frame(self):
        return self.walls
"""


@pytest.fixture(autouse=True)
def dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judged_dice.py").write_text(DICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judged_dice", raising=False)


def policy(id: str = "judged_dice:make") -> Any:
    spec = describe(id, {})
    torch.manual_seed(3)
    config = jobs.algorithm("a2c").config(hidden=(8,))
    return jobs.algorithm("a2c").policy(config, spec, None)


def games(episodes: int, slices: int | None, acting: Any = None, max_moves: int = 200) -> list[Game]:
    acting = acting or policy()
    played = Games(lambda n, threads: make("judged_dice:make", {}, n), acting, 5, episodes, 0.0, "evaluate",
                   max_moves=max_moves)  # fmt: skip
    while not played.advance(slices):
        np.random.random(), random.random()  # training goes on between the slices
    return played.games


@pytest.mark.parametrize("slices", [1, 3, 50])
def test_slices_change_no_game(slices: int) -> None:
    uncut = games(20, None)
    assert len({game.digest for game in uncut}) == len(uncut) == 20
    assert games(20, slices) == pytest.approx(uncut, nan_ok=True) or repr(games(20, slices)) == repr(uncut)


@pytest.mark.parametrize("id", ["judged_dice:maze", "CartPole-v1"])
def test_no_game_begins_like_another_or_like_those_of_training(id: str) -> None:
    """Two whole batches of columns: mazes are built from what all columns share, CartPole begins by its seed alone."""
    count, seeds, openings = 2 * EVALUATED_TOGETHER, list[int](), list[bytes]()

    def watched(columns: int, threads: int) -> Any:
        environment = make(id, {}, columns)
        reset = environment.reset

        def reset_and_note(given: Array) -> Array:
            observation = reset(given)
            seeds.extend(given.tolist())
            openings.extend(x.tobytes() for x in observation)
            return observation

        environment.reset = reset_and_note  # type: ignore[method-assign]
        return environment

    for purpose in ("evaluate", "report"):
        assert Games(watched, policy(id), 5, count, 0.0, purpose, max_moves=1).advance()
    assert len(set(seeds)) == len(set(openings)) == 2 * count
    assert not set(seeds) & set(episode_seeds(5, "episode", range(count), 0).tolist())


def test_training_draws_as_if_nothing_was_judged() -> None:
    np.random.seed(1)
    random.seed(1)
    expected = [(np.random.random(), random.random()) for _ in range(3)]
    np.random.seed(1)
    random.seed(1)
    acting = policy()
    played = Games(lambda n, threads: make("judged_dice:make", {}, n), acting, 5, 4, 0.0, "evaluate")
    numbers = []
    for _ in range(3):
        numbers.append((np.random.random(), random.random()))
        played.advance(2)
    assert numbers == expected
    played.close()


def test_a_slice_ends_where_it_is_told_to() -> None:
    acting, looks = policy(), list[int]()
    played = Games(lambda n, threads: make("judged_dice:make", {}, n), acting, 5, 4, 0.0, "evaluate")
    assert not played.advance(100, lambda: bool(looks.append(1)) or len(looks) == 2)
    assert len(looks) == 2 and played.games == []
    played.close()
    assert played.advance(1), "closed games have no moves left"


def test_long_games_are_cut() -> None:
    cut = games(4, 1, max_moves=1)
    assert len(cut) == 4 and all(game.total < 3 for game in cut)


def judged(judge: GreedyGames, weights: torch.Tensor, rows: int = 1_000_000) -> Judgement:
    judge.begin(weights, 6, "report")
    while (verdict := judge.advance(rows)) is None:
        pass
    return verdict


def maker(changes: Mapping[str, Any], columns: int) -> Any:
    return make("judged_dice:make", dict(changes), columns)


def test_the_judge_keeps_the_weights_of_the_beginning() -> None:
    acting = policy()
    flat = flatten(acting.net)
    state = torch.get_rng_state()
    judge = GreedyGames(acting, maker, [], seed=5)
    first = judged(judge, flat.data)
    assert torch.equal(torch.get_rng_state(), state), "training's generator was drawn from"
    judge.begin(flat.data, 6, "report")
    judge.advance(1)
    flat.data.normal_(generator=torch.Generator().manual_seed(1))  # training goes on
    while (late := judge.advance(1)) is None:
        pass
    assert late.returns == first.returns
    assert judged(judge, flat.data).returns != first.returns


def test_sets_are_judged_each_by_itself() -> None:
    acting = policy()
    flat = flatten(acting.net)
    judge = GreedyGames(acting, maker, [{"goal": 0.0}, {"goal": 2.0}], seed=5)
    verdict = judged(judge, flat.data, rows=7)
    assert verdict.returns[1] > verdict.returns[0] + 2 and verdict.score == pytest.approx(sum(verdict.returns) / 2)
    figures = verdict.figures()
    assert figures["greedy_return"] == verdict.score and figures["greedy_return/1"] == verdict.returns[1]
    assert verdict.success == (0.0, 1.0) and figures["greedy_success"] == 0.5


def test_success_is_left_out_where_the_environment_does_not_tell() -> None:
    assert Judgement((1.0,), (math.nan,)).figures() == {"greedy_return": 1.0}
