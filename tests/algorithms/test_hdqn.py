"""h-DQN's own numbers against slow twins, its options against whole episodes, its ε.

Mutations seen to fail: ε inverted, unscaled by ``exploration``, the same for all goals, or that of the goal before; one
pair of uniforms for both levels; the meta-controller's state that where the option ended, or a goal of another row; the
controller's target cut by the environment's end alone, or not by it; the goal looked for in the state before; a ReLU
behind Q; an item of the meta-controller for every move, or one that outlasts its option; γ^N for γ, γ for γ^N, or none;
the termination bootstrapped; target networks left out; the meta-controller learning in the first phase, or in every
update; goals chosen at LAST counted as attempts, or options that ended with their episode not; a goal kept over
episodes, or its limit a move late; attempts of this rank alone, counted twice, or lost where a run is resumed; ε
without success, without time, or not written to the weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpc_rl.algorithms.hdqn import Config, Learner, epsilons, policy, success_rates
from hpc_rl.envs.make import make
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.nets.goals import GoalPolicy
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.stores import own_store
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Actions, Spec, Step, Trajectory, Tree

SPEC = Spec("flags", (5,), "float32", Actions("discrete", (3,)))
GOALS, ITEMS, LIMIT, GAMMA = (0, 2, 4, 3), 60, 4, 0.9


def config_of(**changes: Any) -> Config:
    fixed: dict[str, Any] = {"goals": GOALS, "option_limit": LIMIT, "hidden": (), "discount": GAMMA, "error_clip": 0.5}
    return Config(**{**fixed, "max_grad_norm": 1e9, "adam_epsilon": 0.01, "tau": 0.25, **changes})


def learner_of(config: Config, spec: Spec = SPEC, seed: int = 3) -> Learner:
    torch.manual_seed(seed)
    learner = Learner(config, spec, None, policy(config, spec, None), Alone())
    with torch.no_grad():
        for net in (learner.net.controller, learner.net.meta):  # else θ = θ⁻
            for p in net.parameters():
                p.add_(torch.randn_like(p))
    return learner


def batch_of(seed: int) -> Trajectory:
    """Options of up to LIMIT moves: ended by their goal, by a termination, by a time limit, in any row."""
    rng = np.random.default_rng(seed)
    first, discount = np.zeros((LIMIT + 1, ITEMS), bool), np.ones((LIMIT, ITEMS), np.float32)
    for k in range(ITEMS):
        end = int(rng.integers(1, LIMIT + 1))  # moves
        first[end + 1 :, k] = True
        if rng.random() < 0.4:
            discount[end - 1, k] = 0
    tree = {
        "observation": rng.integers(0, 2, (LIMIT + 1, ITEMS, 5)).astype(np.float32),
        "first": first,
        "action": rng.integers(0, 3, (LIMIT, ITEMS)),
        "reward": rng.normal(size=(LIMIT, ITEMS)).astype(np.float32),
        "discount": discount,
        "version": np.zeros((LIMIT, ITEMS), np.int64),
        "column": np.zeros(ITEMS, np.int32),
        "start": np.zeros(ITEMS, np.int64),
        "extras/goal": rng.integers(0, len(GOALS), (LIMIT, ITEMS)),
    }
    return trajectory([tree], SPEC)


Linear = tuple[np.ndarray, np.ndarray]


def linear(net: Any) -> Linear:
    return net.advantage.weight.detach().double().numpy().copy(), net.advantage.bias.detach().double().numpy().copy()


def clipped(error: float) -> tuple[float, float]:
    """Huber's loss with κ = 0.5, and its slope."""
    loss = 0.5 * error**2 if abs(error) <= 0.5 else 0.5 * (abs(error) - 0.25)
    return loss, float(np.clip(error, -0.5, 0.5))


def check_step(moved: Tensor, gradient: np.ndarray, rate: float) -> None:
    """Adam's first step, ε = 0.01, of a linear layer."""
    step = np.concatenate([gradient[:, :-1].ravel(), gradient[:, -1]])
    assert np.allclose(moved.numpy(), -rate * step / (np.abs(step) + 0.01), atol=1e-6)


# ---- what is learned ------------------------------------------------------------------------------------------------


def test_the_controller_learns_equation_1_for_the_goal_of_its_move() -> None:
    learner, batch = learner_of(config_of(learning_rate=1e-3)), batch_of(1)
    (w, b), (w_target, b_target) = linear(learner.net.controller), linear(learner.target_net.controller)
    x, goals = batch.observation.double().numpy(), batch.extras["goal"].numpy()
    loss, q_sum, gradient, kinds = 0.0, 0.0, np.zeros((3, 5 + len(GOALS) + 1)), set()
    for k in range(ITEMS):
        shown = np.eye(len(GOALS))[goals[0, k]]
        here, there = np.append(x[0, k], shown), np.append(x[1, k], shown)
        reached, terminated = x[1, k, GOALS[goals[0, k]]] == 1, batch.discount[0, k] == 0
        y = float(reached)
        if not (reached or terminated):
            y += GAMMA * (w_target @ there + b_target).max()
        a = int(batch.action[0, k])
        q = w[a] @ here + b[a]
        part, slope = clipped(y - q)
        loss, q_sum = loss + part, q_sum + q
        gradient[a] -= slope * np.append(here, 1.0) / ITEMS
        kinds.add((bool(reached), bool(terminated)))
    assert len(kinds) == 4
    before = learner.optimizers["controller"].flat.data.clone()
    metrics = learner.update({"controller": batch, "meta": batch}, 0.5).metrics
    assert metrics["loss"] == pytest.approx(loss / ITEMS, rel=1e-4)
    assert metrics["q_mean"] == pytest.approx(q_sum / ITEMS, rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-4)
    check_step(learner.optimizers["controller"].flat.data - before, gradient, 1e-3)


@pytest.mark.parametrize("per", ["option", "move"])
def test_the_meta_controller_learns_equation_2_from_the_state_where_the_goal_was_chosen(per: str) -> None:
    learner, batch = learner_of(config_of(meta_learning_rate=2e-3, option_discount=per)), batch_of(2)
    (w, b), (w_target, b_target) = linear(learner.net.meta), linear(learner.target_net.meta)
    x, r, valid = batch.observation.double().numpy(), batch.reward.double().numpy(), batch.valid.numpy()
    loss, rewards, gradient, lengths = 0.0, 0.0, np.zeros((len(GOALS), 6)), []
    for k in range(ITEMS):
        total, n = 0.0, 0
        while n < LIMIT and valid[n, k]:
            total += (GAMMA**n if per == "move" else 1.0) * r[n, k]
            n += 1
        terminated = bool((batch.discount[:n, k] == 0).any())
        y = total
        if not terminated:  # a time limit and the end of an option bootstrap
            y += (GAMMA**n if per == "move" else GAMMA) * (w_target @ x[n, k] + b_target).max()
        g = int(batch.extras["goal"][0, k])
        part, slope = clipped(y - (w[g] @ x[0, k] + b[g]))
        loss, rewards = loss + part, rewards + total
        gradient[g] -= slope * np.append(x[0, k], 1.0) / ITEMS
        lengths.append((n, terminated))
    assert {(n, end) for n in range(1, LIMIT + 1) for end in (True, False)} == set(lengths)
    before = learner.optimizers["meta"].flat.data.clone()
    metrics = learner.update({"controller": batch, "meta": batch}, 0.5).metrics
    assert metrics["meta_loss"] == pytest.approx(loss / ITEMS, rel=1e-4)
    assert metrics["option_reward"] == pytest.approx(rewards / ITEMS, rel=1e-4, abs=1e-6)
    assert metrics["option_moves"] == pytest.approx(np.mean([n for n, _ in lengths]), rel=1e-6)
    check_step(learner.optimizers["meta"].flat.data - before, gradient, 2e-3)


def test_values_may_be_negative() -> None:
    """No layer lies behind the values: a ReLU there would lose every reward below 0."""
    net = learner_of(config_of(hidden=(8,))).net
    for last in (net.controller.advantage, net.meta.advantage):
        assert isinstance(last, nn.Linear)
    observation = torch.rand(200, 5)
    assert (net.q2(observation) < 0).any() and (net.q1(observation, torch.zeros(200, dtype=torch.int64)) < 0).any()


def test_the_first_phase_leaves_the_meta_controller_alone() -> None:
    learner, batch = learner_of(config_of(pretrain=0.5, meta_every=2)), batch_of(1)
    controller, meta = (learner.optimizers[name].flat.data for name in ("controller", "meta"))
    changed = []
    for progress in (0.0, 0.49, 0.5, 0.6, 0.7):
        before = controller.clone(), meta.clone()
        learner.update({"controller": batch, "meta": batch}, progress)
        changed.append((not torch.equal(before[0], controller), not torch.equal(before[1], meta)))
    assert changed == [(True, False), (True, False), (True, True), (True, False), (True, True)]


def test_target_networks_follow() -> None:
    learner, batch = learner_of(config_of(target_every=2)), batch_of(1)
    for k in range(4):
        target = learner.target.data.clone()
        learner.update({"controller": batch, "meta": batch}, 0.5)
        expected = torch.lerp(target, learner.weights.data, 0.25) if k % 2 else target
        parts = [flat.data for flat in (learner.optimizers[name].flat for name in ("controller", "meta"))]
        at = [(p.storage_offset(), p.storage_offset() + len(p)) for p in parts]
        for low, high in at:
            assert torch.allclose(learner.target.data[low:high], expected[low:high], atol=1e-7), k


# ---- options --------------------------------------------------------------------------------------------------------


def recorded(config: Config, id: str, columns: int, fragments: int, steps: int) -> tuple[Tree, Any, Any]:
    """Whole columns [T, b] as a first policy acted in them, and the ring that they went into."""
    env = make(id, {}, columns)
    torch.manual_seed(2)
    actor = policy(config, env.spec, None)
    schema = trajectory_schema(env.spec, actor.extras, actor.carry, 0)
    experience = replace(config.experience(), min_size=0)
    store: Any = own_store(experience, schema, env.spec, range(columns), 1, 1, None)
    lane = Lane(env, actor, np.arange(columns), streams(1, "act", range(columns), 0))
    lane.start(episode_seeds(1, "episode", range(columns), 0))
    sampler, trees = Vector([lane], Timings()), []
    for _ in range(fragments):
        tree = allocate(schema, steps, columns, 1)
        sampler.collect(tree, lambda: 0)
        store.insert(tree)
        trees.append({name: x.copy() for name, x in tree.items()})
    names = ("reward", "discount", "action", *(name for name in schema if name.startswith("extras/")))
    rows = {name: np.concatenate([tree[name] for tree in trees]) for name in names}
    for name in ("first", "observation"):
        rows[name] = np.concatenate([*(tree[name][:-1] for tree in trees), trees[-1][name][-1:]])
    return rows, store, env.spec


def options_of(rows: Tree, column: int, limit: int, goals: tuple[int, ...]) -> list[dict[str, Any]]:
    """The options of one column, found by going through its rows: the slow oracle."""
    first, x = rows["first"][:, column], rows["observation"][:, column]
    options: list[dict[str, Any]] = []
    current: dict[str, Any] | None = None
    for t in range(len(first) - 1):
        if first[t]:  # whatever went on ended with the episode
            current = None
        elif current and (x[t, goals[current["goal"]]] > 0.5 or t - current["at"] >= limit):
            current["reached"], current["over"] = bool(x[t, goals[current["goal"]]] > 0.5), True
            current = None
        if current is None:
            current = {"at": t, "goal": int(rows["extras/goal"][t, column]), "rewards": [], "reached": False}
            current["over"] = False
            options.append(current)
        assert rows["extras/goal"][t, column] == current["goal"], "a goal is kept until its option ends"
        if first[t + 1]:  # LAST -> FIRST is no move
            current["over"] = True
        else:
            current["rewards"].append(rows["reward"][t, column])
    return [option for option in options if option["rewards"]]


@pytest.mark.parametrize(("id", "limit"), [("toy/six_states", 3), ("toy/six_states", 30), ("toy/chain", 5)])
def test_options_and_attempts_are_those_of_whole_episodes(id: str, limit: int) -> None:
    config = Config(option_limit=limit, hidden=(8,), capacity=4_000, meta_batch_size=400)
    rows, store, spec = recorded(config, id, 3, 40, 6)
    goals = tuple(range(spec.observation[0]))
    known = [(column, option) for column in range(3) for option in options_of(rows, column, limit, goals)]
    ended = rows["extras/ended"]
    for name, part in (("attempts", ended), ("successes", ended & rows["extras/reached"])):
        counts = np.bincount(rows["extras/pursued"][part], minlength=len(goals))
        options = [x for _, x in known if x["over"] and (x["reached"] or name == "attempts")]
        expected = np.bincount([x["goal"] for x in options], minlength=len(goals))
        late = counts - expected  # the row that counts the last option of a column may not be there yet
        assert (late <= 0).all() and -late.sum() <= 3 and counts.sum() > 20, name
    meta = next(kind for kind in store.kinds if kind.items.name == "meta")
    complete = [(column, x) for column, x in known if x["over"]]
    assert abs(meta.count - len(complete)) <= 3, "an item for each option, and for no other move"
    tree, keys = store.draw(meta, 400, np.random.default_rng(0))
    by_place = {(x["at"], column): x for column, x in known}
    batch = trajectory([tree], spec)
    for k, key in enumerate(keys):
        t, column = divmod(int(key), 3)
        option = by_place[t, column]
        n = int(batch.valid[:, k].int().cumprod(0).sum())
        assert n == len(option["rewards"]) and int(batch.extras["goal"][0, k]) == option["goal"]
        assert np.array_equal(batch.observation[0, k], rows["observation"][t, column])
        assert np.array_equal(batch.observation[n, k], rows["observation"][t + n, column])
        assert batch.reward[:n, k].tolist() == option["rewards"]


def step_of(observation: Tensor, first: bool) -> Step:
    n = len(observation)
    return Step(observation, torch.full((n,), first), torch.zeros(n))


def test_a_goal_is_explored_by_its_own_epsilon_and_actions_of_evaluation_are_greedy() -> None:
    config, n = config_of(), 8_000
    actor: GoalPolicy = policy(config, SPEC, None)
    actor.net.epsilon.data.copy_(torch.tensor([0.1, 0.9, 0.5, 0.0, 0.3]))
    observation = torch.zeros(n, 5)
    observation[:, 1] = 1.0  # no goal
    noise = torch.rand(n, 4, generator=torch.Generator().manual_seed(1))
    best = int(actor.net.q2(observation[:1]).argmax())
    act = actor.act(step_of(observation, True), actor.initial_carry(n), torch.ones(n), noise)
    share = float((act.extras["goal"] != best).float().mean())
    assert share == pytest.approx(0.3 * 3 / 4, abs=0.02), "the meta-controller's"
    new = act.extras["goal"] == 1
    greedy_there = int(actor.net.q1(observation[:1], torch.tensor([1])).argmax())
    chosen = float((act.action[new] != greedy_there).float().mean())
    assert new.sum() > 300 and chosen == pytest.approx(0.9 * 2 / 3, abs=0.06), "that of the goal just chosen"
    for goal, epsilon in enumerate((0.1, 0.9, 0.5, 0.0)):
        carry = {"pursued": torch.full((n,), goal), "moves": torch.ones(n, dtype=torch.int64)}
        greedy = int(actor.net.q1(observation[:1], torch.tensor([goal])).argmax())
        act = actor.act(step_of(observation, False), carry, torch.ones(n), noise)
        assert (act.extras["goal"] == goal).all() and not act.extras["decides"].any()
        other = float((act.action != greedy).float().mean())
        assert other == pytest.approx(epsilon * 2 / 3, abs=0.02), goal
        half = actor.act(step_of(observation, False), carry, torch.full((n,), 0.5), noise)
        assert float((half.action != greedy).float().mean()) == pytest.approx(epsilon / 3, abs=0.02)
        assert (actor.act(step_of(observation, False), carry, torch.zeros(n), noise).action == greedy).all()


# ---- ε --------------------------------------------------------------------------------------------------------------


def test_success_rates_forget_as_if_options_came_one_by_one() -> None:
    window, rate, outcomes = 20, 0.3, [1, 0] * 15
    one_by_one = rate
    for outcome in outcomes:
        one_by_one += (outcome - one_by_one) / window
    at_once = success_rates(torch.tensor([rate, rate]), torch.tensor([30.0, 0.0]), torch.tensor([15.0, 0.0]), window)
    assert float(at_once[0]) == pytest.approx(one_by_one, abs=0.02) and float(at_once[1]) == pytest.approx(rate)
    single = success_rates(torch.tensor([rate]), torch.tensor([1.0]), torch.tensor([1.0]), window)
    assert float(single) == pytest.approx(rate + (1 - rate) / window)


def test_epsilon_falls_with_the_goals_success_and_with_time() -> None:
    config = config_of(pretrain=0.2, epsilon_final=0.1, epsilon_fraction=0.5, meta_epsilon_fraction=0.5)
    config = replace(config, success_threshold=0.8)
    success = torch.tensor([0.0, 0.4, 0.8, 1.0])
    expected = {  # progress -> ε of the four goals, of the meta-controller
        0.0: [1.0, 0.55, 0.1, 0.1, 1.0],
        0.19: [0.658, 0.55, 0.1, 0.1, 1.0],
        0.4: [0.28, 0.28, 0.1, 0.1, 0.55],
        0.6: [0.1, 0.1, 0.1, 0.1, 0.1],
        1.0: [0.1, 0.1, 0.1, 0.1, 0.1],
    }
    for progress, numbers in expected.items():
        assert epsilons(config, success, progress).tolist() == pytest.approx(numbers, abs=1e-6), progress


def rows_of(goals: list[int], reached: list[bool], ended: list[bool]) -> dict[str, Tensor]:
    """A fragment of one column per entry."""
    leaves = {"extras/pursued": torch.tensor([goals]), "extras/reached": torch.tensor([reached])}
    return {"column": torch.arange(len(goals)), **leaves, "extras/ended": torch.tensor([ended])}


def test_success_is_summed_over_ranks_and_reaches_what_acts() -> None:
    config, batch = config_of(success_window=10, epsilon_fraction=1.0, pretrain=0.1), batch_of(1)
    parts = [rows_of([0, 0, 1], [True, False, True], [True, True, False]), rows_of([0, 3], [True, True], [True, True])]

    def of(shards: int) -> list[Learner]:
        learners = [learner_of(config) for _ in range(shards)]

        def rank(link: LocalLink) -> None:
            learner = learners[link.rank]
            if shards > 1:
                learner.group = AllReduce(Ports(link, Waiting(30.0)), range(shards))
            for rows in parts if shards == 1 else parts[link.rank :][:1]:
                learner.arrived(rows)
            learner.update({"controller": batch, "meta": batch}, 0.05)

        run_threads(shards, rank, 60.0)
        return learners

    (one,) = of(1)
    kept = 0.9**3
    assert one.success.tolist() == pytest.approx([(1 - kept) * 2 / 3, 0.0, 0.0, 0.1])
    for learner in of(2):
        assert torch.equal(learner.success, one.success)
        expected = epsilons(config, one.success, 0.05)
        assert torch.equal(learner.net.epsilon.data, expected) and expected.unique().numel() > 2
        low = learner.net.epsilon.data_ptr() - learner.weights.data.data_ptr()
        assert 0 <= low < 4 * len(learner.weights.data), "it travels with the weights"
    metrics = one.update({"controller": batch, "meta": batch}, 0.05).metrics
    assert one.success.tolist() == pytest.approx([(1 - kept) * 2 / 3, 0.0, 0.0, 0.1]), "options count once"
    assert metrics["success"] == pytest.approx(float(one.success.mean())) and metrics["meta_epsilon"] == 1.0


def test_options_that_no_update_has_counted_are_resumed() -> None:
    config, batch = config_of(), batch_of(1)
    learner, other = learner_of(config), learner_of(config)
    assert learner.columns() == {}
    for rows in (rows_of([0, 1], [True, False], [True, True]), rows_of([2, 1], [True, True], [True, True])):
        learner.arrived(rows)
    other.load_columns(learner.columns())
    for each in (learner, other):
        each.update({"controller": batch, "meta": batch}, 0.5)
    assert torch.equal(other.success, learner.success) and learner.success.gt(0).tolist() == [True, True, True, False]
    assert learner.columns() == {}


# ---- what is refused ------------------------------------------------------------------------------------------------

PIXELS = Spec("pixel", (40, 50), "uint8", Actions("discrete", (3,)), stack=4)


@pytest.mark.parametrize(
    ("spec", "changes", "text"),
    [
        (replace(SPEC, actions=Actions("box", (2,))), {}, "flags has box actions; use HAC"),
        (SPEC, {"goals": (1, 5)}, "goals = [1, 5] are none; name goals from 0 to 4"),
        (SPEC, {"goals": (), "boxes": ((0, 0, 2, 2),)}, "boxes = [(0, 0, 2, 2)]"),
        (replace(SPEC, frame=(2, 3)), {}, "flags are [2, 3]; goals there are entries of a vector"),
        (PIXELS, {"goals": ()}, "pixel are images [4, 40, 50]; goals there are boxes"),
        (replace(PIXELS, stack=1), {"goals": (), "boxes": ((0, 0, 2, 2),)}, "images [40, 50]"),
        (
            PIXELS,
            {"goals": (), "boxes": ((0, 0, 51, 2),)},
            "boxes has [0, 0, 51, 2], which is no box of frames of pixel",
        ),
        (PIXELS, {"goals": (), "boxes": ((3, 0, 3, 2),)}, "x0 < x1 <= 50 and y0 < y1 <= 40"),
        (PIXELS, {"goals": (), "boxes": ((3, 0, 3),)}, "boxes has [3, 0, 3]"),
    ],
)
def test_goals_that_are_none_are_named(spec: Spec, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Unsuited) as error:
        policy(config_of(**changes), spec, None)
    assert text in str(error.value) and "h-DQN" in str(error.value)
