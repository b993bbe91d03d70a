"""DeepSea against bsuite's own rules in plain loops; the four rooms against a search of their map.

Mutations seen to fail: one action for right in every cell; a cost of 0.01; the cost not paid at the treasure; a
treasure one column earlier; the boat shown in the last row once it is below; a wall that can be walked into; a door
shifted by one; the goal paid without an end; a time limit that terminates; an even size accepted.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.grids import deep_sea, four_rooms
from hpc_rl.envs.make import make


class Dive:
    """DeepSea as bsuite 0.3.5 defines it, one boat at a time."""

    def __init__(self, size: int, mapping_seed: int) -> None:
        self.size, self.row, self.column = size, 0, 0
        self.mapping = np.random.RandomState(mapping_seed).binomial(1, 0.5, [size, size])

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        reward, right = 0.0, action == self.mapping[self.row, self.column]
        if self.column == self.size - 1 and right:
            reward += 1.0
        if right:
            self.column = min(self.column + 1, self.size - 1)
            reward -= 0.01 / self.size
        else:
            self.column = max(self.column - 1, 0)
        self.row += 1
        shown = np.zeros((self.size, self.size), np.float32)
        if self.row < self.size:
            shown[self.row, self.column] = 1.0
        return shown.ravel(), reward, self.row == self.size


@pytest.mark.parametrize(("size", "mapping_seed"), [(2, 0), (5, 42), (10, 7)])
def test_deep_sea_is_that_of_bsuite(size: int, mapping_seed: int) -> None:
    env = make("toy/deep_sea", {"size": size, "mapping_seed": mapping_seed}, 8)
    rng = np.random.default_rng(0)
    for _ in range(6):
        shown = env.reset(np.arange(8))
        assert shown[:, 0].tolist() == [1.0] * 8 and shown.sum() == 8
        boats = [Dive(size, mapping_seed) for _ in range(8)]
        for _ in range(size):
            action = rng.integers(2, size=8)
            here = [boat.mapping[boat.row, boat.column] for boat in boats[:4]]
            action[:4] = np.where(rng.random(4) < 0.9, here, action[:4])  # half of them mostly go right
            env.send(action)
            moves = env.recv()
            for k, boat in enumerate(boats):
                observation, reward, over = boat.step(action[k])
                assert np.array_equal(moves.observation[k], observation)
                assert moves.reward[k] == np.float32(reward) and moves.ended[k] == over == (moves.discount[k] == 0)
                assert over == (not np.isnan(moves.success[k]))
                assert not over or moves.success[k] == (reward > 0.5)


def test_the_optimum_of_deep_sea_is_a_hundredth_less_than_its_treasure() -> None:
    size = 10
    mapping = np.random.RandomState(42).binomial(1, 0.5, (size, size))
    assert 0.2 < mapping.mean() < 0.8 and np.ptp(np.diag(mapping)) == 1, "no action goes right everywhere"
    env, total = make("toy/deep_sea", {"size": size}, 1), 0.0
    env.reset(np.zeros(1, int))
    for k in range(size):
        env.send(mapping[k, k : k + 1])
        total += float(env.recv().reward[0])
    assert total == pytest.approx(0.99)


def walls(size: int) -> set[tuple[int, int]]:
    middle, doors = size // 2, (size // 4, size - 1 - size // 4)
    whole = {(middle, k) for k in range(size)} | {(k, middle) for k in range(size)}
    return whole - {(middle, door) for door in doors} - {(door, middle) for door in doors}


def test_the_map_of_the_four_rooms() -> None:
    """Every place in reach from the start, by the Rules themselves and by a search of the map."""
    rules, size = four_rooms(np).rules, 19
    start = (0, 0)
    distance, queue = {start: 0}, deque([start])
    while queue:
        place = queue.popleft()
        state = {name: np.full(4, x) for name, x in zip(("row", "column"), place, strict=True)} | {"step": np.zeros(4)}
        after = rules.move(state, np.arange(4), np.zeros((4, 0)))[0]
        for k, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            there = (min(max(place[0] + down, 0), size - 1), min(max(place[1] + right, 0), size - 1))
            there = place if there in walls(size) else there
            assert (after["row"][k], after["column"][k]) == there
            if there not in distance:
                distance[there] = distance[place] + 1
                queue.append(there)
    assert len(distance) == 328 and distance[size - 1, size - 1] == 36


def test_the_four_rooms_pay_at_the_far_corner_alone() -> None:
    size, limit = 5, 9
    env = make("toy/four_rooms", {"size": size, "limit": limit}, 2)
    shown = env.reset(np.arange(2))
    assert np.flatnonzero(shown[0]).tolist() == [0]
    way = [2, 1, 1, 1, 2, 2, 2, 1]  # through the door of (1, 2), around, and through that of (2, 3)
    for step in range(1, limit + 1):
        env.send(np.array([way[step - 1] if step <= len(way) else 0, 0]))
        moves, there = env.recv(), step == len(way)
        if step <= len(way):
            assert moves.reward[0] == moves.ended[0] == there == (moves.discount[0] == 0)
        if there:
            assert moves.success[0] == 1 and np.flatnonzero(moves.observation[0]).tolist() == [size**2 - 1]
        assert moves.reward[1] == 0 and moves.discount[1] == 1 and moves.ended[1] == (step == limit)
        assert step != limit or moves.success[1] == 0


def test_bad_sizes_get_a_sentence() -> None:
    with pytest.raises(BadEnvironment, match=r"size = 8 has no middle row; use 9"):
        four_rooms(np, size=8)
    with pytest.raises(BadEnvironment, match="size"):
        deep_sea(np, size=1)
