"""HAC against the recursion of its paper over whole trajectories, and its losses against a slow twin.

Mutations seen to fail: a penalty that bootstraps, without a whole run below, where a run of the level below that was
cut short, or left out of the loss; the goal left out of what a level sees; subgoals about 0 where their range is not;
noise below a test, and tests in an evaluation; what is below a test not part of it; always the proposal for an action,
or never; tests beside goals from hindsight; such a goal met at the end of an item alone; the last state alone for it;
−1, or γ, where the goal is met; s for s'; targets below −H; a first value near −H; attempts that go on over an opening
row; an attempt that counts before it ends; goals of higher levels that end no run; actors that descend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.algorithms import hac
from hpc_rl.envs.goals import goal_spec, met_within
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.experience import Unsuited
from hpc_rl.formulas.subgoals import GoalSpace, bounded_value, runs_over
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.nets.levels import goal_view
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.ring import Ring
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Actions, Array, Rules, Spec, Step, Trajectory, Tree

LOW, HIGH, NEAR = (-1.0, -0.5), (1.0, 1.5), (0.3, 0.4)
SPEC = goal_spec("walk", 2, 2, Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
BASE = {
    "low": LOW, "high": HIGH, "thresholds": NEAR, "subgoal_noise": (0.1, 0.1),
    "min_size": 1, "batch_size": 8, "capacity": 4000, "unroll": 5,
}  # fmt: skip
CASES = [(2, 3), (3, 2)]  # levels, H
COLUMNS = 3


def config_of(levels: int = 2, horizon: int = 3, **changes: Any) -> hac.Config:
    return hac.Config(**{**BASE, "levels": levels, "horizon": horizon, **changes})


def walk(limit: int) -> Rules:
    """A point on a plane that goes where the action points to; the goal is drawn, ``limit`` moves truncate."""

    def begin(u: Array) -> dict[str, Any]:
        place, desired = 2 * u[:, :2] - [1.0, 0.5], 2 * u[:, 2:] - [1.0, 0.5]
        return {"place": place, "desired": desired, "step": np.zeros(len(u), np.int64)}

    def move(state: dict[str, Any], action: Array, u: Array) -> tuple[dict[str, Any], Array, Array, Array]:
        place = np.clip(state["place"] + 0.5 * action, LOW, HIGH)
        reward, discount = met_within(np, place, state["desired"], NEAR)
        following = {**state, "place": place, "step": state["step"] + 1}
        return following, reward, discount, (discount > 0) & (following["step"] == limit)

    def show(state: dict[str, Any]) -> Array:
        return np.concatenate([3 * state["place"], state["place"], state["desired"]], 1).astype(np.float32)

    return Rules(SPEC, begin, move, show, 4)


def policy_of(config: hac.Config, spread: float = 1.0) -> Any:
    """With weights that make actions differ."""
    torch.manual_seed(7)
    policy = hac.policy(config, SPEC, None)
    with torch.no_grad():
        for p in policy.net.parameters():
            p.add_(spread * torch.randn_like(p))
    return policy


def played(config: hac.Config, limit: int, fragments: int = 60) -> tuple[Tree, Ring]:
    """Everything that some columns did, as one tree [T(+1), b, …] and as a ring that relabels nothing."""
    policy, columns = policy_of(config), range(COLUMNS)
    lane = Lane(RulesEnvironment(walk(limit), COLUMNS), policy, np.array(columns), streams(3, "act", columns, 0))
    lane.start(episode_seeds(3, "episode", columns, 0))
    vector, schema = Vector([lane], Timings()), trajectory_schema(SPEC, policy.extras, policy.carry, 0)
    experience = config.experience()
    plain = replace(experience, items=tuple(replace(items, relabel=None) for items in experience.items))
    ring, trees = Ring(schema, SPEC, columns, plain, 1, 0), []
    for _ in range(fragments):
        tree = allocate(schema, config.unroll, COLUMNS, 1)
        vector.collect(tree, lambda: 0)
        ring.insert(tree)
        trees.append(tree)
    names = [name for name in trees[0] if name in ("action", "reward") or name.startswith("extras/")]
    whole = {name: np.concatenate([tree[name] for tree in trees]) for name in names}
    for name in ("observation", "first"):
        whole[name] = np.concatenate([*(tree[name][:-1] for tree in trees), trees[-1][name][-1:]])
    return whole, ring


# ---- the recursion of the paper -------------------------------------------------------------------------------------


class Recursion:
    """Algorithm 1 of the paper over the rows of one episode of one column: ``transitions`` {(level, row): …}.

    Proposals and whether they were tested are what the policy drew; when each level acts follows from the recursion.
    """

    def __init__(self, config: hac.Config, tree: Tree, column: int, start: int, last: int) -> None:
        self.config, self.last, self.column = config, last, column
        rows = {name: x[:, column] for name, x in tree.items()}
        self.goals, self.testing = rows["extras/goals"].astype(float), rows["extras/testing"]
        self.place, self.desired = rows["observation"][:, 2:4].astype(float), rows["observation"][:, 4:].astype(float)
        self.action = rows["action"].astype(float)
        self.transitions: dict[tuple[int, int], dict[str, Any]] = {}
        self.cut = 0  # tested and missed, but not by a whole run
        top = config.levels - 1
        assert not self.testing[start, top]
        self.run(top, start, {top: self.desired[start]}, False)

    def near(self, row: int, goal: Array) -> bool:
        return bool((abs(self.place[row] - goal) <= np.float32(NEAR)).all())

    def run(self, level: int, row: int, goals: dict[int, Array], testing: bool) -> tuple[int, bool]:
        """A run of this level from ``row`` towards goals[level]: the row where it ended, and whether it did by itself,
        with its goal met or with H whole attempts."""
        config, attempts, whole = self.config, 0, True
        while True:
            start, attempts = row, attempts + 1
            if level:
                proposal, tested = self.goals[row, level - 1], bool(self.testing[row, level - 1])
                assert tested or not testing, "what is below a test is part of it"
                row, whole = self.run(level - 1, row, {**goals, level - 1: proposal}, tested)
                hit = self.near(row, proposal)
                action = proposal if hit else self.place[row]
                exhausted = whole and not hit
                penalty = tested and exhausted
                self.cut += tested and not hit and not exhausted
            else:
                row, action, hit, penalty = row + 1, self.action[row], False, False
            met = self.near(row, goals[level])
            self.transitions[level, start] = {
                "action": action,
                "reward": 0.0 if met else -1.0,
                "discount": 0.0 if met else config.discount,
                "behind": row,
                "missed": penalty,
                "reached": hit,
                "goal": goals[level],
            }
            if any(self.near(row, goal) for goal in goals.values()):
                return row, met or (level < config.levels - 1 and attempts == config.horizon and whole)
            if attempts == config.horizon and whole and level < config.levels - 1:
                return row, True
            if row == self.last:
                return row, False


def recursions(config: hac.Config, tree: Tree) -> list[Recursion]:
    """Of every episode that has ended."""
    found = []
    for column in range(COLUMNS):
        opens = np.flatnonzero(tree["first"][:, column])
        found += [Recursion(config, tree, column, a, b - 1) for a, b in pairwise(opens)]
    return found


def before(row: int, keys: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    return {key for key in keys if key[2] < row}


def items_of(ring: Ring, level: int) -> tuple[Array, Array, Trajectory]:
    """(row, column) of all complete items of a level, and these as a batch."""
    kind = ring.kinds[level]
    row, column = np.nonzero(kind.lengths)
    tree = ring.rows.gather(row, column, kind.lengths[row, column], kind.items.length)
    return row, column, trajectory([tree], SPEC)


def transitions(config: hac.Config, batch: Trajectory, level: int) -> dict[str, Array]:
    """What the method makes of these items, {field: [n, …]}."""
    view = goal_view(SPEC, GoalSpace(LOW, HIGH, NEAR))
    return {name: x.double().numpy() for name, x in vars(hac.transitions(config, view, batch, level)).items()}


def close(x: Array, y: Array) -> bool:
    return bool(abs(x - y).max() < 1e-5)


def scaled(goal: Array) -> Array:
    low, high = np.array(LOW), np.array(HIGH)
    return 2 * (goal - low) / (high - low) - 1


@pytest.mark.parametrize(("levels", "horizon"), CASES)
def test_items_are_the_transitions_of_the_recursion(levels: int, horizon: int) -> None:
    config = config_of(levels, horizon, noise=0.5, test_share=0.5)
    seen = {"missed": 0, "reached": 0, "met": 0, "ended": 0}
    cut = 0
    for limit in (11, 18):
        tree, ring = played(config, limit)
        oracle = {(r.column, *key): (r, x) for r in recursions(config, tree) for key, x in r.transitions.items()}
        cut += sum(r.cut for r in recursions(config, tree))
        for level in range(levels):
            row, column, batch = items_of(ring, level)
            got = transitions(config, batch, level)
            starts = {(c, i, t) for c, i, t in oracle if i == level}
            ended = min(max(t for c, _, t in starts if c == k) for k in range(COLUMNS)) - horizon**levels
            mine = {(int(c), level, int(t)) for t, c in zip(row, column, strict=True)}
            assert before(ended, mine) == before(ended, starts)
            if level:
                at = np.argwhere(tree[f"extras/decides_{level}"] & ~tree["first"][1:])
                assert before(ended, {(c, level, t) for t, c in at.tolist()}) == before(ended, starts)
            for k, key in enumerate((int(c), level, int(t)) for t, c in zip(row, column, strict=True)):
                if key not in oracle:
                    continue
                run, x = oracle[key]
                behind = tree["observation"][x["behind"], key[0]]
                expected = np.concatenate([behind[:2], scaled(behind[2:4]), scaled(x["goal"])])
                assert close(got["behind"][k], expected) and close(got["before"][k, -2:], scaled(x["goal"]))
                assert close(got["action"][k], np.clip(scaled(x["action"]), -1, 1) if level else x["action"])
                assert got["reward"][k] == x["reward"] and abs(got["discount"][k] - x["discount"]) < 1e-6
                assert (got["missed"][k], got["reached"][k], got["weight"][k]) == (x["missed"], x["reached"], 1)
                seen = {name: seen[name] + bool(x.get(name)) for name in seen}
                seen["met"] += x["reward"] == 0
                seen["ended"] += x["behind"] == run.last
    assert min(seen.values()) >= 10 and cut >= 5, (seen, cut)


@pytest.mark.parametrize(("levels", "horizon"), CASES)
def test_a_goal_from_hindsight_ends_an_item_where_it_is_met_first(levels: int, horizon: int) -> None:
    config = config_of(levels, horizon, noise=0.5)
    _, ring = played(config, 18)
    rng = np.random.default_rng(0)
    early = 0
    for level in range(levels):
        _, _, batch = items_of(ring, level)
        count, moves = batch.first.shape[1], batch.valid.long().cumprod(0).sum(0).numpy()
        place = batch.observation[:, :, 2:4].numpy()
        goal = np.array([place[rng.integers(1, moves[k] + 1), k] for k in range(count)])
        goal[::5] += 5.0  # of another row: met nowhere
        observation, reward, extras = batch.observation.clone(), batch.reward.clone(), dict(batch.extras)
        if level == levels - 1:
            observation[:, :, 4:] = torch.from_numpy(goal)
            reward = torch.from_numpy(
                met_within(np, place[1:], np.broadcast_to(goal, place[1:].shape), NEAR)[0]
            ).float()
        else:
            extras[f"goal_{level}"] = torch.from_numpy(goal).expand_as(batch.extras[f"goal_{level}"])
        relabelled = replace(batch, observation=observation, reward=reward, extras=extras)
        got = transitions(config, relabelled, level)
        for k in range(count):
            met = [bool((abs(place[t, k] - goal[k]) <= np.float32(NEAR)).all()) for t in range(1, moves[k] + 1)]
            end = met.index(True) + 1 if any(met) else int(moves[k])
            early += end < moves[k]
            assert close(got["behind"][k, :2], 3 * place[end, k]) and close(got["before"][k, -2:], scaled(goal[k]))
            assert got["reward"][k] == (0 if any(met) else -1)
            assert abs(got["discount"][k] - (0 if any(met) else config.discount)) < 1e-6
            assert not got["missed"][k], "a test is judged beside the level's own goal"
            if level:
                subgoal = batch.carry["goals"][k, level - 1].numpy()
                hit = bool((abs(place[end, k] - subgoal) <= np.float32(NEAR)).all())
                expected = np.clip(scaled(subgoal if hit else place[end, k]), -1, 1)
                assert close(got["action"][k], expected)
    assert early > 20


# ---- acting ---------------------------------------------------------------------------------------------------------


def step_at(place: Array, first: bool, reward: float = -1.0) -> Step:
    """One column each of these places, all with the goal (1, 1)."""
    count = len(place)
    shown = np.concatenate([3 * place, place, np.ones((count, 2))], 1).astype(np.float32)
    return Step(torch.from_numpy(shown), torch.full((count,), first), torch.full((count,), reward))


def acts(policy: Any, place: Array, exploration: float, seed: int = 0) -> Any:
    count = len(place)
    noise = torch.rand(count, policy.noise, generator=torch.Generator().manual_seed(seed))
    return policy.act(step_at(place, True), policy.initial_carry(count), torch.full((count,), exploration), noise)


def test_below_a_tested_subgoal_nothing_is_random() -> None:
    config = config_of(3, 4, random_actions=0.5)
    policy = policy_of(config)
    place = np.zeros((4000, 2))
    out, plain = acts(policy, place, 1.0), acts(policy, place[:1], 0.0)
    tested = out.extras["testing"]
    assert abs(tested[:, 1].float().mean() - 0.3) < 0.03 and not tested[:, 2].any()
    assert tested[tested[:, 1]][:, 0].all() and abs(tested[:, 0].float().mean() - 0.51) < 0.03
    for k in tested[:, 1].nonzero()[:50, 0].tolist():  # level 1's subgoal is what its actor says of level 2's
        inputs = policy.view.inputs(step_at(place[:1], True).observation, out.extras["goal_1"][k : k + 1])
        subgoal = policy.view.space.unscaled(policy.net[1](inputs))
        assert torch.allclose(subgoal, out.extras["goal_0"][k : k + 1], atol=1e-4)
    for k in tested[:, 0].nonzero()[:50, 0].tolist():
        inputs = policy.view.inputs(step_at(place[:1], True).observation, out.extras["goal_0"][k : k + 1])
        assert torch.allclose(policy.net[0](inputs), out.action[k : k + 1], atol=1e-4)
    assert not plain.extras["testing"].any()


def test_an_evaluation_has_no_noise_and_no_tests() -> None:
    policy = policy_of(config_of(3, 4, test_share=1.0, random_actions=0.5))
    place = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    one, other = (acts(policy, place, 0.0, seed) for seed in (1, 2))
    assert torch.equal(one.action, other.action) and torch.equal(one.extras["goals"], other.extras["goals"])
    assert not one.extras["testing"].any() and acts(policy, place, 1.0).extras["testing"][:, :2].all()


def test_noise_and_random_actions_are_those_of_the_config() -> None:
    place = np.zeros((4000, 2))
    config = config_of(noise=0.2, subgoal_noise=(0.1, 0.03), random_actions=0.0, test_share=0.0)
    noisy, greedy = (acts(policy_of(config, 0.1), place, exploration) for exploration in (1.0, 0.0))
    subgoal = noisy.extras["goal_0"] - greedy.extras["goal_0"]
    assert torch.allclose(subgoal.std(0), torch.tensor([0.1, 0.03]), rtol=0.1)
    tested = acts(policy_of(config_of(noise=0.2, subgoal_noise=(0.0, 0.0), random_actions=0.0, test_share=0.0), 0.1),
                  place, 1.0)  # fmt: skip
    assert torch.allclose((tested.action - greedy.action).std(0), torch.tensor([0.2, 0.2]), rtol=0.1)
    anything = acts(policy_of(config_of(random_actions=1.0, test_share=0.0)), place, 1.0)
    goals = anything.extras["goal_0"].numpy()
    assert np.allclose(goals.min(0), LOW, atol=0.01) and np.allclose(goals.max(0), HIGH, atol=0.01)
    assert np.allclose(goals.mean(0), [0.0, 0.5], atol=0.03), "not about 0 where the range is not"


def test_an_opening_row_begins_every_run() -> None:
    policy = policy_of(config_of(3, 2))
    carry = {"goals": torch.full((1, 3, 2), 9.0), "attempts": torch.full((1, 3), 2), "testing": torch.ones(1, 3).bool()}
    carry["testing"][:, 2] = False
    out = policy.act(step_at(np.zeros((1, 2)), True), carry, torch.zeros(1), torch.rand(1, policy.noise))
    assert out.extras["used"].tolist() == [[1, 1, 1]] and not out.extras["testing"].any()
    assert out.extras["decides_1"].item() and out.extras["decides_2"].item()
    assert out.extras["goals"][0, 2].tolist() == [1, 1] and out.extras["goals"].abs().max() < 9
    low = policy.act(step_at(np.zeros((1, 2)), False), out.carry, torch.zeros(1), torch.rand(1, policy.noise))
    assert low.extras["used"].tolist() == [[2, 1, 1]] and not low.extras["decides_1"].item()


def test_runs_over_by_hand() -> None:
    met = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    used = torch.tensor([[1, 1, 1], [2, 1, 1], [2, 2, 1], [1, 2, 1], [1, 1, 1], [1, 1, 1], [1, 2, 9]])
    over = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert runs_over(met, used, 2).int().tolist() == over


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [5, 20])
def test_values_begin_near_zero_and_stay_within_the_horizon(horizon: int) -> None:
    x = torch.tensor([0.0, -1e9, 1e9])
    assert torch.allclose(bounded_value(x, horizon), torch.tensor([-0.067, 0.0, -float(horizon)]), atol=1e-6)
    learner = learner_of(config_of(horizon=horizon, hidden=(64, 64)), moved=False)
    for critic in learner.critics:
        q = critic(torch.randn(100, 6), torch.rand(100, 2) * 2 - 1)
        assert ((q < -0.05) & (q > -0.09)).all()


def learner_of(config: hac.Config, moved: bool = True) -> Any:
    torch.manual_seed(3)
    learner = hac.Learner(config, SPEC, None, hac.policy(config, SPEC, None), Alone())
    with torch.no_grad():
        for optimizer in learner.optimizers.values():
            if moved:
                optimizer.flat.data.add_(0.7 * torch.randn_like(optimizer.flat.data))
    return learner


def numbers(flat: Any) -> Array:
    return np.asarray(flat.data.detach().double().numpy()).copy()


def difference(f: Callable[[Array], float], theta: Array) -> Array:
    step = 1e-5 * np.eye(len(theta))
    return np.array([(f(theta + e) - f(theta - e)) / 2e-5 for e in step])


class Twin:
    """One update with linear networks, in float64, transition by transition."""

    def __init__(self, config: hac.Config, learner: Any, batches: dict[str, Trajectory]) -> None:
        self.config = config
        self.rows = [transitions(config, batches[f"level_{i}"], i) for i in range(config.levels)]
        self.actors, self.before = numbers(learner.weights), numbers(learner.optimizers["critics"].flat)
        self.count = sum(x["weight"].sum() + x["missed"].sum() for x in self.rows)
        self.moves = sum(x["weight"].sum() for x in self.rows)

    def value(self, theta: Array, level: int, x: Array, a: Array) -> float:
        """−H / (1 + exp(−(w · (x, a) + b + c))) of 6 + 2 weights and a bias a level."""
        own, horizon = theta[9 * level : 9 * level + 9], self.config.horizon
        offset = -np.log(horizon / 0.067 - 1)
        return float(-horizon / (1 + np.exp(-(own[:8] @ np.concatenate([x, a]) + own[8] + offset))))

    def act(self, theta: Array, level: int, x: Array) -> Array:
        own = theta[14 * level : 14 * level + 14]
        return np.tanh(own[:12].reshape(2, 6) @ x + own[12:])

    def target(self, level: int, row: dict[str, Array], k: int) -> float:
        after = self.value(self.before, level, row["behind"][k], self.act(self.actors, level, row["behind"][k]))
        return float(np.clip(row["reward"][k] + row["discount"][k] * after, -self.config.horizon, 0))

    def critics_loss(self, theta: Array) -> float:
        total = 0.0
        for level, row in enumerate(self.rows):
            for k in range(len(row["weight"])):
                q = self.value(theta, level, row["before"][k], row["action"][k])
                total += 0.5 * row["weight"][k] * (self.target(level, row, k) - q) ** 2
                if row["missed"][k]:
                    said = self.value(theta, level, row["before"][k], row["proposal"][k])
                    total += 0.5 * (-self.config.horizon - said) ** 2
        return total / self.count

    def actors_loss(self, theta: Array, critics: Array) -> float:
        return (
            -sum(
                row["weight"][k] * self.value(critics, level, x, self.act(theta, level, x))
                for level, row in enumerate(self.rows)
                for k, x in enumerate(row["before"])
            )
            / self.moves
        )


@pytest.mark.parametrize(("levels", "horizon"), CASES)
def test_an_update_is_that_of_the_slow_twin(levels: int, horizon: int) -> None:
    config = config_of(levels, horizon, hidden=(), noise=0.5, test_share=0.9)
    learner, (_, ring) = learner_of(config), played(config, 11)
    batches = {}
    for level in range(levels):
        _, _, batch = items_of(ring, level)
        missed = transitions(config, batch, level)["missed"]
        batches[f"level_{level}"] = batch.columns(slice(0, max(20, int(missed.argmax()) + 2)))
    twin = Twin(config, learner, batches)
    assert all(row["missed"].sum() for row in twin.rows[1:])
    metrics = learner.update(batches, 0.0).metrics
    gradient = learner.optimizers["critics"].flat.reduction[:-2].double().numpy()
    assert np.allclose(gradient, difference(twin.critics_loss, twin.before), atol=1e-4)
    critics = numbers(learner.optimizers["critics"].flat)
    gradient = learner.weights.reduction[:-2].double().numpy()
    assert np.allclose(gradient, difference(lambda x: twin.actors_loss(x, critics), twin.actors), atol=1e-4)
    for level, row in enumerate(twin.rows):
        targets = [twin.target(level, row, k) for k in range(len(row["weight"]))]
        assert np.isclose(metrics[f"target_mean_{level}"], np.mean(targets), atol=1e-5)
        assert np.isclose(metrics[f"missed_{level}"], row["missed"].mean(), atol=1e-6)
        assert np.isclose(metrics[f"reached_{level}"], row["reached"].mean(), atol=1e-6)
        assert np.isclose(metrics[f"met_{level}"], (row["reward"] == 0).mean(), atol=1e-6)
    assert min(row["reward"].min() for row in twin.rows) == -1


def test_targets_stay_within_the_horizon() -> None:
    config = config_of(2, 3, hidden=(), discount=1.0)
    learner, (_, ring) = learner_of(config), played(config, 11)
    with torch.no_grad():
        for critic in learner.critics:
            critic.critic.value.bias.fill_(100.0)  # every value is −H
    batches = {f"level_{level}": items_of(ring, level)[2] for level in range(2)}
    metrics = learner.update(batches, 0.0).metrics
    for level in range(2):
        assert metrics[f"target_mean_{level}"] == pytest.approx(-3 * (1 - metrics[f"met_{level}"]), abs=1e-4)


# ---- what is drawn, and bad input -----------------------------------------------------------------------------------


def test_every_level_draws_its_own_items() -> None:
    experience = config_of(3, 4, hindsight_goals=3).experience()
    low, middle, top = experience.items
    assert [(x.name, x.length, x.opens, x.closes) for x in experience.items] == [
        ("level_0", 1, "", ""),
        ("level_1", 4, "decides_1", "decides_1"),
        ("level_2", 16, "decides_2", "decides_2"),
    ]
    relabels = [x.relabel for x in (low, middle, top) if x.relabel]
    assert [(x.goal, x.within) for x in relabels] == [("goal_0", "decides_1"), ("goal_1", "decides_2"), ("", "")]
    assert {(x.strategy, x.share) for x in relabels} == {("future", 0.75)}, "not the last state alone"


def test_an_environment_without_goals_is_refused() -> None:
    plain = Spec("plain", (3,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
    with pytest.raises(Unsuited, match=r"parts observation, achieved_goal, desired_goal, and plain .* shows no parts"):
        hac.policy(config_of(), plain, None)
    discrete = replace(SPEC, actions=Actions("discrete", (3,)))
    with pytest.raises(Unsuited, match="walk has discrete actions"):
        hac.policy(config_of(), discrete, None)
    for changes in ({"low": (0.0,)}, {"low": (1.0, 2.0)}, {"thresholds": (0.1, 0.1, 0.1)}):
        with pytest.raises(Unsuited, match="do not fit the goals of walk; give 2 numbers each"):
            hac.policy(config_of(**changes), SPEC, None)
