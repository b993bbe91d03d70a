"""Every file of algorithms/ keeps its contract, whatever it is: parametrised over the folder.

Mutations seen to fail: ``act`` drawing with torch.rand; an extra missing or of another dtype; the permutation drawn
over this rank's columns; the advantage's mean of this rank; ``round`` or the optimiser left out of ``load``; counts
left out of the reduction; the step taken in spite of a non-finite norm; bad rows left in ``valid``, in the statistics,
or as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.fragments import trajectory
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoints import learner_state, load_columns, load_learner
from hpc_rl.runtime.divergence import check_identical
from hpc_rl.runtime.restoring import _alike
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Spec, Trajectory
from tests.contract.batches import (
    ACTING,
    COLUMNS,
    ENVIRONMENTS,
    NAMES,
    SPECS,
    STEPS,
    SUITED,
    WHOLE,
    cases,
    config_of,
    fed,
    learner_of,
    policy_of,
    sampled,
    sampled_trees,
    step_of,
)


def test_the_batches_hold_both_kinds_of_end() -> None:
    _, (batch,) = sampled(NAMES[0], "toy/counter", 1)
    into_last = batch.valid[:-1] & ~batch.valid[1:]
    assert set(batch.discount[:-1][into_last].tolist()) == {0.0, 1.0}


def test_every_method_learns_somewhere() -> None:
    assert {name for name, _ in SUITED} == set(NAMES) and {kind for _, kind in SUITED} == set(SPECS)


# ---- act ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "changes"), cases({}, WHOLE, of=SUITED))
def test_act_gives_what_the_schema_says(name: str, kind: str, changes: dict[str, Any]) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind], config_of(name, **changes))
    noise = torch.rand(3, policy.fragment_noise + policy.noise)
    act = policy.act(step_of(spec, 3), policy.initial_carry(3), torch.ones(3), noise)
    assert act.action.shape == (3, *spec.actions.shape) and act.action.dtype == getattr(torch, spec.actions.dtype)
    for leaves, schema in (
        (act.extras, policy.extras),
        (act.carry, policy.carry),
        (policy.initial_carry(3), policy.carry),
    ):
        assert leaves.keys() == schema.keys()
        for leaf_name, leaf in schema.items():
            assert leaves[leaf_name].shape == (3, *leaf.shape), leaf_name
            assert leaves[leaf_name].dtype == getattr(torch, leaf.dtype), leaf_name
            assert torch.isfinite(leaves[leaf_name].float()).all() and not leaves[leaf_name].requires_grad


@pytest.mark.parametrize(("name", "kind"), SUITED)
def test_act_draws_nothing(name: str, kind: str) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind])
    noise = torch.rand(8, policy.fragment_noise + policy.noise)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    acts = [policy.act(step_of(spec, 8), policy.initial_carry(8), torch.ones(8), noise).action for _ in range(2)]
    assert torch.equal(*acts)
    assert torch.equal(torch.get_rng_state(), torch_state) and np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]


@pytest.mark.parametrize(("name", "kind"), SUITED)
def test_exploration_zero_is_greedy_and_one_is_not(name: str, kind: str) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind])
    step = step_of(spec, 64)

    def actions(exploration: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(64, policy.fragment_noise + policy.noise, generator=generator)
        carry = policy.initial_carry(64)
        action: Tensor = policy.act(step, carry, torch.full((64,), exploration), noise).action
        return action

    assert torch.equal(actions(0.0, 1), actions(0.0, 2))
    assert not torch.equal(actions(1.0, 1), actions(1.0, 2))


# ---- update ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ENVIRONMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_and_parameters_move(name: str, id: str) -> None:
    spec, batches = sampled(name, id, 2)
    learner = learner_of(name, spec)
    before = learner.weights.data.clone()
    for batch in batches:
        metrics = learner.update(fed(learner, batch), 0.25).metrics
        assert metrics and all(np.isfinite(value) for value in metrics.values()), metrics
    assert torch.isfinite(learner.weights.data).all() and not torch.equal(learner.weights.data, before)


@pytest.mark.parametrize(("name", "changes"), cases({}, WHOLE, {"objective": "kl", "kl_target": 1e-4}, {"replay": 0.5}))
def test_a_loaded_state_repeats_the_next_update_bitwise(name: str, changes: dict[str, Any]) -> None:
    config = config_of(name, **changes)
    spec, batches = sampled(name, "toy/counter", 3, config=config)
    learner = learner_of(name, spec, config)
    learner.update(fed(learner, batches[0]), 0.0)
    learner.update(fed(learner, batches[1]), 0.1)
    state, rows = learner_state(learner), learner.columns()
    expected = learner.update(fed(learner, batches[2]), 0.2).metrics
    torch.manual_seed(99)
    fresh = learner_of(name, spec, config)
    for optimizer in fresh.optimizers.values():
        optimizer.step()  # as where a run is resumed: shapes are compared with those of a learner that is new
    _alike(learner_state(fresh), state, "state")
    load_learner(fresh, state)
    load_columns(fresh, rows, range(COLUMNS))
    assert fresh.update(fed(fresh, batches[2]), 0.2).metrics == expected
    assert torch.equal(fresh.weights.data, learner.weights.data)


def updated(
    name: str, spec: Spec, config: Any, batches: list[Trajectory], shards: int, state: StateDict
) -> list[Tensor]:
    """Parameters of every rank after one update per batch, each rank holding its share of the columns."""
    weights: list[Tensor] = [torch.zeros(0)] * shards
    learners = [learner_of(name, spec, config) for _ in range(shards)]

    def rank(link: LocalLink) -> None:
        learner = learners[link.rank]
        load_learner(learner, state)
        if shards > 1:
            learner.group = AllReduce(Ports(link, Waiting(30.0)), range(shards))
        width = COLUMNS // shards
        for k, batch in enumerate(batches):
            part = batch.columns(slice(link.rank * width, (link.rank + 1) * width))
            learner.update(fed(learner, part), 0.1 * k)
        if shards > 1:
            check_identical(learner)
        weights[link.rank] = learner.weights.data.clone()

    run_threads(shards, rank, 60.0)
    return weights


SHARDED: list[dict[str, Any]] = [
    {},
    {"minibatches": 2},
    {"minibatches": 16, "normalize_advantage": False, "epochs": 2},
    {"minibatches": 2, **WHOLE},
    {"minibatches": 2, "objective": "kl", "kl_target": 1e-4},
]


@pytest.mark.parametrize("id", ENVIRONMENTS)
@pytest.mark.parametrize(("name", "changes"), cases(*SHARDED))
def test_updates_on_shards_equal_the_update_on_the_union(name: str, id: str, changes: dict[str, Any]) -> None:
    config = config_of(name, **changes)
    spec, batches = sampled(name, id, 3, config=config)
    state = learner_state(learner_of(name, spec, config))
    (expected,) = updated(name, spec, config, batches, 1, state)
    assert (expected - state["weights"]).abs().max() > 1e-4
    for shards in (2, 4):
        for part in updated(name, spec, config, batches, shards, state):
            assert (part - expected).abs().max() <= 1e-5, f"{shards} shards"


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_drops_the_step(name: str) -> None:
    spec, (batch,) = sampled(name, "toy/catch", 1)
    learner = learner_of(name, spec, config_of(name, epochs=2, minibatches=8))
    if not learner.optimizers:
        pytest.skip("takes no gradient")
    learner.update(fed(learner, batch), 0.0)
    assert learner.group.dropped == 0
    state = learner_state(learner)
    missing = {"reward": torch.full_like(batch.reward, torch.nan)}
    if "outcome" in batch.extras:  # which stands for the rewards of a game
        missing = {"extras": {**batch.extras, "outcome": missing["reward"]}}
    elif name not in ACTING:  # recorded moves are learned from without rewards
        missing = {"observation": torch.full_like(batch.observation, torch.nan)}
    learner.update(fed(learner, replace(batch, **missing)), 0.0)
    steps = {"ppo": 16, "rnd": 16, "impala": 4, "alphago": 2}.get(name, 1)  # 4 columns are in at most 4 minibatches
    assert learner.group.dropped == steps, "one bad batch of many steps is one bad update"
    assert torch.equal(learner.weights.data, state["weights"])
    learner.update(fed(learner, batch), 0.0)
    assert learner.group.dropped == steps and not torch.equal(learner.weights.data, state["weights"])


@pytest.mark.parametrize(("name", "changes"), cases({}, WHOLE, {"objective": "kl"}, {"replay": 0.5}))
def test_a_move_without_numbers_is_not_learned_from(name: str, changes: dict[str, Any]) -> None:
    """Whatever stands in a row that is not finite, parameters, statistics and metrics come out the same, and finite."""
    config = config_of(name, **changes)
    spec, trees = sampled_trees(name, "toy/counter", 2, config=config)
    results = []
    for value in (np.nan, np.inf, -np.inf):
        learner = learner_of(name, spec, config)
        for tree in trees:
            broken = {key: x.copy() for key, x in tree.items()}
            broken["reward"][5, 1] = value
            broken["observation"][[9, 10], 2, 0] = value
            broken["observation"][STEPS, 3] = value
            batch = trajectory([broken], spec)
            moves = {(5, 1), (8, 2), (9, 2), (10, 2), (STEPS - 1, 3)}
            assert {(t, k) for t, k in (~batch.finite).nonzero().tolist()} == moves
            metrics = learner.update(fed(learner, batch), 0.0).metrics
            assert all(np.isfinite(x) for x in metrics.values()), metrics
        assert learner.group.dropped == 0 and torch.isfinite(learner.weights.data).all()
        results.append(learner)
    for other in results[1:]:
        assert torch.equal(other.weights.data, results[0].weights.data)
    if changes is WHOLE and hasattr(results[0], "normalizers"):
        for running in (results[0].normalizers.seen, results[0].normalizers.returns):
            assert running.count == len(trees) * (STEPS * COLUMNS - len(moves))
