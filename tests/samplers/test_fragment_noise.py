"""Uniforms that a policy draws once for each fragment: the same in any layout, kept with the fragment, and off unless
asked for.

Mutations seen to fail: drawn where M = 0; drawn once per lane; new ones for each move; the leaf "noise" taken for rows
of moves where a fragment is cut into lanes; a segment that keeps the noise of its first fragment only, or counts the
fragments of the segment before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.envs.make import make
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage import segments
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Schema, Spec, Tree
from tests.contract.batches import config_of, policy_of

COLUMNS, STEPS, ROUNDS = 5, 7, 3


class Watched:
    """A policy whose first M uniforms belong to the fragment; what it was given is kept."""

    def __init__(self, spec: Spec, fragment_noise: int) -> None:
        self.inner, self.fragment_noise = policy_of("a2c", spec, config_of("a2c")), fragment_noise
        self.given: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def act(self, step: Any, carry: Any, exploration: Any, noise: torch.Tensor) -> Any:
        assert noise.shape == (len(step.first), self.fragment_noise + self.noise) and noise.dtype == torch.float32
        self.given.append(noise.numpy().copy())
        return self.inner.act(step, carry, exploration, noise[:, self.fragment_noise :])


def collected(fragment_noise: int, lanes: int = 1) -> tuple[Spec, Schema, list[Tree], list[Watched]]:
    lanes_made: list[Lane] = []
    policies: list[Watched] = []
    for columns in np.array_split(np.arange(COLUMNS), lanes):
        environment = make("toy/catch", {}, len(columns))
        policy = Watched(environment.spec, fragment_noise)
        lanes_made.append(Lane(environment, policy, columns, streams(3, "act", columns.tolist(), 0)))
        lanes_made[-1].start(episode_seeds(3, "episode", columns.tolist(), 0))
        policies.append(policy)
    schema = trajectory_schema(environment.spec, policy.extras, policy.carry, policy.fragment_noise)
    sampler, trees = Vector(lanes_made, Timings()), []
    for k in range(ROUNDS):
        trees.append(allocate(schema, STEPS, COLUMNS, 1))
        sampler.collect(trees[-1], lambda: k)  # noqa: B023  # called before the next round
    return environment.spec, schema, trees, policies


def test_without_it_streams_are_the_moves_alone() -> None:
    _, schema, trees, (policy,) = collected(0)
    assert "noise" not in schema and "noise" not in trees[0]
    draws = [
        [s.random((STEPS, policy.noise), np.float32) for _ in range(ROUNDS)]
        for s in streams(3, "act", range(COLUMNS), 0)
    ]
    expected = np.concatenate(np.array(draws).swapaxes(0, 1).swapaxes(1, 2))  # [ROUNDS · T, b, K]
    assert np.array_equal(np.array(policy.given), expected)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_it_stays_over_a_fragment_and_is_kept(lanes: int) -> None:
    spec, _, trees, policies = collected(2, lanes)
    low = 0
    for policy in policies:
        columns = slice(low, low := low + policy.given[0].shape[0])
        for k, tree in enumerate(trees):
            rows = np.array(policy.given[k * STEPS : (k + 1) * STEPS])
            assert np.array_equal(rows[:, :, :2], np.broadcast_to(tree["noise"][columns], rows[:, :, :2].shape))
            assert len(np.unique(rows[:, :, 2:])) == rows[:, :, 2:].size, "those of the moves are new for each"
    every = np.array([tree["noise"] for tree in trees])
    assert every.shape == (ROUNDS, COLUMNS, 2) and len(np.unique(every)) == every.size
    for one, other in zip(trees, collected(2)[2], strict=True):
        assert all(np.array_equal(x, other[name], equal_nan=True) for name, x in one.items())
    batch = trajectory(trees[:2], spec)
    assert np.array_equal(batch.noise.numpy(), np.concatenate([tree["noise"] for tree in trees[:2]]))


@pytest.mark.parametrize("counts", [[3], [2, 1], [1, 1, 1]], ids=str)
def test_that_of_each_fragment_is_recorded(counts: list[int], tmp_path: Path) -> None:
    """A reader finds for every move what it was made with, in whatever segment its fragment lies."""
    spec, schema, trees, _ = collected(2)
    columns, keep = np.arange(COLUMNS), np.arange(COLUMNS) % 2 == 0
    recorder = Recorder(tmp_path / "trajectories" / "a0-worker-0", schema, spec, columns, keep, 0)
    waiting = list(trees)
    for count in counts:
        for _ in range(count):
            recorder.write(waiting.pop(0))
        recorder.roll()
    paths, low = segments.segments(tmp_path), 0
    assert len(paths) == len(counts)
    for path, count in zip(paths, counts, strict=True):
        noise, begins = segments.read(path, "noise"), segments.read(path, "fragment_row")
        assert begins.tolist() == [STEPS * k for k in range(count)]
        assert np.array_equal(noise, [tree["noise"][keep] for tree in trees[low : low + count]])
        moves = np.arange(len(segments.read(path, "reward")))
        of_moves = noise[np.searchsorted(begins, moves, "right") - 1]
        assert np.array_equal(of_moves[::STEPS], noise) and len(of_moves) == STEPS * count
        low += count


def test_without_it_segments_are_as_they_were(tmp_path: Path) -> None:
    spec, schema, trees, _ = collected(0)
    columns = np.arange(COLUMNS)
    recorder = Recorder(tmp_path / "trajectories" / "a0-worker-0", schema, spec, columns, columns >= 0, 0)
    recorder.write(trees[0])
    recorder.close()
    (path,) = segments.segments(tmp_path)
    with pytest.raises(KeyError):
        segments.read(path, "fragment_row")
