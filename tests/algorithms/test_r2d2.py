"""R2D2's own numbers against a slow twin, what its actors remember, its burn-in, its priorities and its ladder.

Mutations seen to fail: the exponents α and β swapped; a burn-in with gradients, or of the target network by the online
one; the stored state left out, that of the zero ablation kept; the state not reset where an episode opens inside a
sequence; last action or last reward of another row; γ in the place of γⁿ; a time limit taken for a death; a termination
that bootstraps; h or h⁻¹ left out; priorities over the burn-in, or of moves that never happened; the ladder divided by
zero with one column, or by N; an item that begins at LAST; ε = 0.4 in the recall job.
"""

from __future__ import annotations

from copy import deepcopy
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl import job as jobs
from hpc_rl.algorithms.r2d2 import Config, Learner, annotate, exploration, loss, policy
from hpc_rl.envs.make import make
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.stores import own_store
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Actions, Spec, Step, Trajectory, Tree
from tests.formulas.test_returns import random_case

SPEC = Spec("vector", (3,), "float32", Actions("discrete", (4,)))
BURN_IN, LENGTH, N, ITEMS, LSTM = 2, 5, 3, 40, 5


def config_of(**changes: Any) -> Config:
    fixed: dict[str, Any] = {"burn_in": BURN_IN, "length": LENGTH, "n_step": N, "hidden": (6,), "lstm": LSTM}
    return Config(**{**fixed, "discount": 0.9, "stride": 4, "target_every": 2, "max_grad_norm": 1e9, **changes})


def learner_of(config: Config, spec: Spec = SPEC, seed: int = 3) -> Learner:
    torch.manual_seed(seed)
    return Learner(config, spec, None, policy(config, spec, None), Alone())


def batch_of(seed: int) -> Trajectory:
    """Sequences over several episodes, with both kinds of end."""
    rng, case = np.random.default_rng(seed), random_case(seed, BURN_IN + LENGTH, ITEMS, 0.4)
    rows = BURN_IN + LENGTH
    tree = {
        "observation": rng.normal(size=(rows + 1, ITEMS, 3)).astype(np.float32),
        "first": case.first,
        "action": rng.integers(0, 4, (rows, ITEMS)),
        "reward": 3 * case.reward.astype(np.float32),
        "discount": case.discount.astype(np.float32),
        "version": np.zeros((rows, ITEMS), np.int64),
        "column": np.zeros(ITEMS, np.int32),
        "start": np.zeros(ITEMS, np.int64),
        "extras/last_reward": rng.normal(size=(rows, ITEMS)).astype(np.float32),
        "carry/lstm": rng.normal(size=(ITEMS, 2, LSTM)).astype(np.float32),
        "carry/last_action": rng.integers(0, 4, ITEMS),
    }
    batch = trajectory([tree], SPEC)
    batch.chance[:] = torch.linspace(1, 9, ITEMS)
    return batch


def h(x: float, epsilon: float) -> float:
    return float(np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + epsilon * x)


def h_inverse(x: float, epsilon: float) -> float:
    root = (np.sqrt(1 + 4 * epsilon * (abs(x) + 1 + epsilon)) - 1) / (2 * epsilon)
    return float(np.sign(x) * (root**2 - 1))


def test_the_loss_and_the_priorities_are_the_papers() -> None:
    config, batch = config_of(rescale=0.01, importance_exponent=0.6, eta=0.8), batch_of(1)
    q, target_q = torch.randn(2, LENGTH + 1, ITEMS, 4) * 3
    summed, sums, priorities = loss(config, q, target_q, batch)
    r, d, valid, chance = (x.double().numpy() for x in (batch.reward, batch.discount, batch.valid, batch.chance))
    total = q_sum = y_sum = error_sum = 0.0
    ends = set()
    for k in range(ITEMS):
        errors = []
        for t in range(LENGTH):
            if not valid[BURN_IN + t, k]:
                continue
            y, power, row, terminated = 0.0, 1.0, t, False
            while row < min(t + N, LENGTH) and valid[BURN_IN + row, k] and not terminated:
                y += power * r[BURN_IN + row, k]
                power, terminated, row = 0.9 * power, d[BURN_IN + row, k] == 0, row + 1
            if not terminated:
                y += power * h_inverse(float(target_q[row, k, int(q[row, k].argmax())]), 0.01)
            value = float(q[t, k, int(batch.action[BURN_IN + t, k])])
            errors.append(abs(h(y, 0.01) - value))
            total += chance[k] ** -0.6 * 0.5 * errors[-1] ** 2
            q_sum, y_sum = q_sum + h_inverse(value, 0.01), y_sum + y
            ends.add((row - t, bool(terminated)))
        error_sum += sum(errors)
        expected = 0.8 * max(errors) + 0.2 * sum(errors) / len(errors) if errors else 0.0
        assert float(priorities[k]) == pytest.approx(expected, rel=1e-4)
    assert {(1, True), (1, False), (2, False), (3, True), (3, False)} <= ends
    assert [float(x) for x in (summed, *sums)] == pytest.approx([total, total, q_sum, y_sum, error_sum], rel=1e-3)


def unrolled(net: Any, batch: Trajectory, state: Tensor, through: bool = False) -> Tensor:
    """Q [L+1, n, A] behind the burn-in, which has a gradient with ``through``."""
    action = torch.cat([batch.carry["last_action"][None], batch.action])
    reward = torch.cat([batch.extras["last_reward"][:1], batch.reward])
    rows = [batch.observation, action, reward, batch.first]
    with torch.set_grad_enabled(through):
        _, state = net(*(x[:BURN_IN] for x in rows), state)
    q: Tensor = net(*(x[BURN_IN:] for x in rows), state)[0]
    return q


@pytest.mark.parametrize("state", ["stored", "zero"])
def test_the_burn_in_warms_both_networks_up_without_gradients(state: Any) -> None:
    config, batch = config_of(state=state), batch_of(2)
    learner = learner_of(config)
    with torch.no_grad():
        learner.target.data.add_(0.3 * torch.randn_like(learner.target.data))
    net, target_net = deepcopy(learner.policy.net), deepcopy(learner.target_net)
    begin = batch.carry["lstm"] if state == "stored" else torch.zeros(ITEMS, 2, LSTM)
    norms = []
    for through in (False, True):
        net.zero_grad()
        summed, _, priorities = loss(
            config, unrolled(net, batch, begin, through), unrolled(target_net, batch, begin), batch
        )
        (summed / batch.valid[BURN_IN:].sum()).backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))  # type: ignore[union-attr]
    result = learner.update({"items": batch}, 0.0)
    assert result.metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-4)
    assert abs(norms[1] - norms[0]) > 1e-3 * norms[0], "with a gradient through the burn-in it is another one"
    assert result.priorities is not None and torch.allclose(result.priorities, priorities, rtol=1e-4)


def test_the_state_is_reset_where_an_episode_opens_inside_a_sequence() -> None:
    learner, batch = learner_of(config_of()), batch_of(3)
    batch.first[:] = False
    batch.first[BURN_IN + 2] = True
    q = learner._unrolled(learner.policy.net, batch)
    batch.observation[: BURN_IN + 2] += 1.0
    batch.carry["lstm"] += 1.0
    batch.reward[: BURN_IN + 2] += 1.0
    other = learner._unrolled(learner.policy.net, batch)
    assert torch.equal(other[2:], q[2:]) and not torch.isclose(other[:2], q[:2]).all(-1).any()


def collected(config: Config, fragments: int) -> tuple[Spec, list[tuple[Tree, Trajectory]], Any]:
    """(spec, fragments, what the store draws) of a first policy where rewards are 0 and 1 and episodes short."""
    env = make("toy/latency", {"length": 4, "step_s": 1e-9, "reset_s": 0.0, "end_probability": 0.2}, 4)
    torch.manual_seed(3)
    player = policy(config, env.spec, None)
    schema = trajectory_schema(env.spec, player.extras, player.carry)
    store = own_store(config.experience(), schema, env.spec, range(4), 1, 1, None)
    lane = Lane(env, player, np.arange(4), streams(1, "act", range(4), 0))
    lane.start(episode_seeds(1, "episode", range(4), 0))
    lane.explore(np.full(4, 0.5))
    vector, trees = Vector([lane], Timings()), []
    for _ in range(fragments):
        tree = allocate(schema, config.unroll, 4, 1)
        vector.collect(tree, lambda: 0)
        store.insert(tree)
        trees.append((tree, trajectory([tree], env.spec)))
    return env.spec, trees, store


FREE: dict[str, Any] = {
    "unroll": 7,
    "min_size": 0,
    "capacity": 2000,
    "batch_size": 64,
    "rescale": 0.01,
    "state": "stored",
}


@pytest.mark.parametrize("burn_in", [0, 3])
def test_the_learner_computes_what_the_actors_did(burn_in: int) -> None:
    """With the actors' weights: from stored states, with the last action and reward of the same rows."""
    config = config_of(**FREE, burn_in=burn_in)
    spec, trees, store = collected(config, 40)
    learner = learner_of(config, spec)
    ((tree,), _) = store.sample(0)["items"]
    batches = [trajectory([tree], spec), *(batch for _, batch in trees[:5])]
    assert (batches[0].first[1:].any(0) & batches[0].reward.any(0)).any() and len(tree["reward"]) == burn_in + LENGTH
    for batch in batches:
        with torch.no_grad():
            q = learner._unrolled(learner.policy.net, batch)[:-1]
        happened = slice(burn_in, None)
        q_action = q.gather(-1, batch.action[happened][..., None]).squeeze(-1)
        assert torch.allclose(q_action, batch.extras["q_action"][happened], atol=1e-5)
        assert torch.allclose(q.amax(-1), batch.extras["q_max"][happened], atol=1e-5)


def test_rewards_that_are_not_finite_leave_priorities_finite() -> None:
    config = config_of(**FREE)
    steps = config.burn_in + config.length
    rows = {name: np.ones((steps, 2), np.float32) for name in ("reward", "discount")}
    rows |= {name: np.ones((steps + 1, 2), np.float32) for name in ("extras/q_action", "extras/q_max")}
    rows |= {"first": np.zeros((steps + 1, 2), bool)}
    rows["reward"][-1, 0] = np.nan
    priorities = annotate(config, rows)["priority"]
    assert np.isfinite(priorities).all() and priorities[0] != priorities[1]


def test_items_begin_every_few_moves_and_never_at_last() -> None:
    config = config_of(**FREE)
    _, trees, _ = collected(config, 40)
    opens = np.concatenate([tree["extras/opens"] for tree, _ in trees])
    valid = np.concatenate([~tree["first"][1:] for tree, _ in trees])
    for k in range(4):
        rows, row, expected = len(opens), 0, []
        while row < rows - 1:
            expected.append(row)
            row += 4
        begins = np.flatnonzero((opens & valid)[:, k])
        assert set(np.diff(begins)) <= {3, 4, 5} and begins[0] == 0 and (~valid[:, k]).any()
        late = np.flatnonzero((opens & ~valid)[:, k])
        assert all(t + 1 in begins for t in late if t + 1 < rows)


def test_the_ladder() -> None:
    config, columns = Config(epsilon=0.4), np.arange(5, dtype=np.int32)
    epsilon = exploration(config, columns, 5, 0.3)
    assert epsilon.dtype == np.float32
    assert epsilon.tolist() == pytest.approx([0.4 ** (1 + 7 * i / 4) for i in range(5)])
    assert np.array_equal(exploration(config, columns[3:], 5, 1.0), epsilon[3:]), "for life, by the job's column"
    assert exploration(config, columns[:1], 1, 0.0).tolist() == pytest.approx([0.4])


def test_the_recall_job_meets_its_junction_by_chance() -> None:
    """In one episode of 100 while the greedy action never walks on, as it may before a junction was met at all."""
    job = jobs.load("r2d2_recall")
    length, columns = job.environment.arguments["length"], job.environment.columns
    walk = exploration(jobs.method_config(job), np.arange(columns), columns, 0.0) / 3  # one action of three
    moves = 2 * length - 1  # before the last one, which may still turn
    met = sum(comb(moves, k) * walk**k * (1 - walk) ** (moves - k) for k in range(length - 1, moves + 1))
    assert met.mean() > 0.01


def test_the_exponents_are_where_they_belong() -> None:
    assert (Config().priority_exponent, Config().importance_exponent) == (0.9, 0.6)
    config, batch = config_of(priority_exponent=0.3, importance_exponent=1.0), batch_of(4)
    assert config.experience().items[0].alpha == 0.3
    q = torch.randn(LENGTH + 1, ITEMS, 4)
    batch.chance[:] = 4.0
    weighted, plain = loss(config, q, q, batch)[0], loss(config_of(importance_exponent=0.0), q, q, batch)[0]
    assert float(plain) == pytest.approx(4 * float(weighted), rel=1e-4)


def test_the_target_network_is_copied_every_few_updates() -> None:
    learner = learner_of(config_of(anneal=True))
    for k in range(4):
        before = learner.target.data.clone()
        result = learner.update({"items": batch_of(k)}, 0.25)
        copied = torch.equal(learner.target.data, learner.weights.data)
        assert copied == (k % 2 == 1) and copied != torch.equal(learner.target.data, before)
        assert result.metrics["learning_rate"] == 0.75 * 1e-3


def test_a_loaded_learner_has_the_same_target_and_the_same_rounds() -> None:
    learner, other = learner_of(config_of()), learner_of(config_of(), seed=4)
    learner.update({"items": batch_of(0)}, 0.0)
    saved, target = learner.state(), learner.target.data.clone()
    learner.update({"items": batch_of(1)}, 0.0)
    other.load(saved)
    assert torch.equal(other.target.data, target) and other.rounds == 1


def test_one_uniform_decides_whether_and_one_which() -> None:
    player = policy(config_of(), SPEC, None)
    step = Step(torch.randn(5, 3), torch.ones(5, dtype=torch.bool), torch.zeros(5))
    carry, exploring = player.initial_carry(5), torch.full((5,), 0.3)
    best = player.act(step, carry, torch.zeros(5), torch.zeros(5, 2)).action
    noise = torch.tensor([[0.29, 0.0], [0.29, 0.26], [0.29, 0.999999], [0.3, 0.6], [0.9, 0.1]])
    output = player.act(step, carry, exploring, noise)
    assert output.action.tolist() == [0, 1, 3, *best[3:].tolist()]
    assert torch.equal(output.carry["last_action"], output.action)


def test_other_actions_are_refused_in_a_sentence() -> None:
    for actions in (Actions("box", (2,)), Actions("multidiscrete", (2, 3))):
        with pytest.raises(Unsuited, match=f"one discrete choice, and other has {actions.kind} actions; use"):
            policy(Config(), Spec("other", (3,), "float32", actions), None)
