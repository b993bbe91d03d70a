"""First priorities of items, which a store computes from what the actors remembered, are the learner's own.

Mutations seen to fail: an item that does not wait for the row behind it; the value of its last row instead; γⁿ left
out; the value at the item's end instead of the row behind its last valid move; the mean of Q for the largest; the value
of the action taken for that of the policy's own; rewards not clipped or not scaled; the cross-entropy for the KL; a
method that annotates without priorities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import methods
from hpc_rl.agent import bind
from hpc_rl.envs.make import make
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.stores import own_store
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Tree
from tests.contract.batches import environment_of

REPLAY = {"capacity": 2000, "min_size": 0, "batch_size": 64}
ATOMS = {"v_min": -20.0, "v_max": 80.0}
CASES: dict[str, dict[str, Any]] = {
    "dqn": {**REPLAY, "unroll": 7, "n_step": 3, "priority_exponent": 0.7, "discount": 0.9, "reward_clip": 0.6},
    "rainbow": {**REPLAY, "unroll": 7, "discount": 0.9, "reward_clip": 20.0, "sigma": 1e-6, **ATOMS},
    "ddpg": {**REPLAY, "unroll": 7, "n_step": 3, "priority_exponent": 0.7, "discount": 0.9},
    "d4pg": {
        **REPLAY,
        "unroll": 7,
        "n_step": 3,
        "priority_exponent": 0.7,
        "discount": 0.9,
        "reward_scale": 0.1,
        **ATOMS,
    },
    "r2d2": {**REPLAY, "unroll": 7, "burn_in": 3, "length": 6, "discount": 0.9},
}


def test_every_method_that_annotates_has_a_case() -> None:
    annotates = {name for name in methods.algorithms() if methods.algorithm(name).annotate}
    of_games = {  # notes of whole episodes are no priorities; tests of the method have their values
        name for name in annotates if any(x.annotated == "episode" for x in methods.experience(name, {}).items)
    }
    assert annotates - of_games == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_first_priorities_are_the_learners_own(name: str) -> None:
    """Where θ = θ⁻ is what acted, in short episodes that terminate and others that a time limit cuts."""
    algorithm = methods.algorithm(name)
    env = make(environment_of(name, "toy/counter"), {}, 4)
    config = algorithm.config(**CASES[name])
    agent = bind(algorithm, config, config.experience(), env.spec)
    torch.manual_seed(3)
    player = agent.make_policy()
    schema = trajectory_schema(env.spec, player.extras, player.carry, player.fragment_noise)
    store = own_store(agent.experience, schema, env.spec, range(4), 1, 1, agent.annotate)
    assert isinstance(store, Ring) and store.prioritised and store.prioritised.priorities
    lane = Lane(env, player, np.arange(4), streams(1, "act", range(4), 0))
    lane.start(episode_seeds(1, "episode", range(4), 0))
    lane.explore(np.full(4, 0.5))
    vector = Vector([lane], Timings())
    for _ in range(40):
        tree: Tree = allocate(schema, config.unroll, 4, 1)
        vector.collect(tree, lambda: 0)
        store.insert(tree)
        store.release()
    ((items,), keys) = store.sample(0)["items"]
    assert keys is not None
    first = store.prioritised.priorities.of(store.rows.at(*np.divmod(keys, 4)))
    learner = agent.make_learner(player, Alone())
    priorities = learner.update({"items": trajectory([items], env.spec)}, 0.0).priorities
    assert priorities is not None and len(np.unique(first.round(5))) > 15
    assert np.allclose(first, np.maximum(priorities.numpy(), 1e-6), rtol=1e-3 if name == "rainbow" else 2e-5, atol=1e-5)
    env.close()


@pytest.mark.parametrize("name", CASES)
def test_without_priorities_there_is_nothing_to_annotate(name: str) -> None:
    """The rows then have no values, or none of the row behind the item."""
    algorithm = methods.algorithm(name)
    assert algorithm.annotate is not None
    assert algorithm.annotate(algorithm.config(**{**CASES[name], "priority_exponent": 0.0}), {}) is None
