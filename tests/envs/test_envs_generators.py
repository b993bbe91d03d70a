"""Environments that draw from numpy.random and random: the same seed gives the same moves, in a rank and in children.

Mutations seen to fail: either generator left out of seed_shared; a child that is not seeded; an evaluation that goes on
with the stream of training; a crew whose seed is always the same.
"""

import random
import sys

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.envs.base import TimeSteps
from hpc_rl.envs.column_shares import Processes
from hpc_rl.envs.generators import seed_shared, shared_kept
from hpc_rl.envs.make import describe, make
from tests.contract.greedy import greedy_returns

DICE = """
import random
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete

class make(gymnasium.Env):
    def __init__(self):
        self.observation_space, self.action_space = Box(0, 1, (3,)), Discrete(2)
        self.maze = np.random.random()  # drawn when it is made, as a maze would be

    def frame(self):
        return np.array([self.maze, random.random(), np.random.random()], np.float32)

    def reset(self, *, seed=None, options=None):
        self.left = random.randint(2, 6)
        return self.frame(), {}

    def step(self, action):
        self.left -= 1
        return self.frame(), np.random.random(), self.left <= 0, False, {}
"""


@pytest.fixture(autouse=True)
def dice(tmp_path, monkeypatch):
    (tmp_path / "their_dice.py").write_text(DICE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # where children look for it
    monkeypatch.delitem(sys.modules, "their_dice", raising=False)
    with shared_kept():
        yield


def rows(seeds, processes=0, start=1):
    seed_shared(start)
    env = make("their_dice:make", {}, len(seeds), 1, Processes(processes, 30.0))
    try:
        shown = [env.reset(np.array(seeds))]
        for _ in range(12):
            env.send(np.zeros(len(seeds), int))
            moves = env.recv()
            assert isinstance(moves, TimeSteps)
            shown.append(np.concatenate([moves.observation, moves.reward[:, None]], 1)[:, :3])
    finally:
        env.close()
    return np.stack(shown)


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_the_same_seed_gives_the_same_moves(processes):
    first = rows([3, 4], processes)
    random.random(), np.random.random()
    assert np.array_equal(first, rows([3, 4], processes))
    other = rows([5, 4], processes)
    assert np.array_equal(first[:, :, 0], other[:, :, 0])  # made alike
    assert not np.array_equal(first[:, 0, 1:], other[:, 0, 1:])
    assert not np.array_equal(first[0, 0], first[0, 1]), "columns differ"
    assert not np.array_equal(first[:, :, 0], rows([3, 4], processes, start=2)[:, :, 0]), "another rank, another maze"


@pytest.mark.parametrize("processes", [0, 2])
def test_two_crews_of_a_rank_differ(processes):
    seed_shared(1)
    mazes = []
    for _ in range(2):
        env = make("their_dice:make", {}, 2, 1, Processes(processes, 30.0))
        mazes.append(env.reset(np.array([3, 4]))[:, 0])
        env.close()
    assert len({*mazes[0], *mazes[1]}) == 4


def test_an_evaluation_repeats_and_training_goes_on_as_if_there_had_been_none():
    spec = describe("their_dice:make", {})
    policy = jobs.algorithm("a2c").policy(jobs.algorithm("a2c").config(), spec, None)

    def build(columns, threads):
        return make("their_dice:make", {}, columns, threads)

    seed_shared(9)
    expected = random.random(), np.random.random()
    found = []
    for start in (1, 9):
        seed_shared(start)
        found.append(greedy_returns(build, policy, 5, 4))
    assert found[0] == found[1]
    assert (random.random(), np.random.random()) == expected


def test_purposes_and_columns_have_streams_of_their_own():
    drawn = set()
    for key in [(1, 0), (1, 1), (2, 0), (1, 0, 1)]:
        seed_shared(*key)
        drawn |= {random.random(), np.random.random()}
    assert len(drawn) == 8
