"""HIRO against slow oracles that walk whole trajectories, episodes' ends inside; each level's steps are those of TD3.

Mutations seen to fail: the reward −‖·‖²; candidates not clipped, not rolled forward, scored beyond the end of an
episode, drawn with the whole range as σ or around the goal, without the original or the reached offset; the worst
of them taken; h backwards, or with noise in it; rewards or the row behind taken over the end of an episode; γᶜ in
place of γ; rewards not scaled; goals in units where networks have shares; the next move's goal not moved; the
environment's reward, or the high level's γ, in the low level; its terminations left out; items of the high level
that begin anywhere; each low step on the same items; one z for both levels, or for all updates; the mean or the
larger of two critics; the target's value by the critics that learn; actors stepped each time; 1 − τ; relabelling
with the low policy that the learner began with; noise not scaled to the range, or one for goals and actions; goals
of c + 1 moves, or over episodes, or kept as offsets; a low level that sees the task's goal; a distance over all
entries; the carry remembered after the move.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.algorithms import hiro, td3
from hpc_rl.envs.make import make
from hpc_rl.experience import Unsuited
from hpc_rl.formulas.relative_goals import goal_candidates, goal_reward, moved_goal
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.stores import own_store
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Actions, Array, Spec, Step, Trajectory, Tree

C, COLUMNS, UNROLL, FRAGMENTS = 5, 3, 7, 12
MAZE, COUNTER = "toy/point_maze", "toy/box_counter"
ARGUMENTS: dict[str, dict[str, Any]] = {MAZE: {"steps": 13}, COUNTER: {}}
POSITION = {MAZE: [0, 1], COUNTER: [1, 2]}
CONFIG = hiro.Config(
    unroll=UNROLL, interval=C, goal_range=(3.0, 0.5), candidates=6, capacity=600, min_size=0, batch_size=40,
    low_steps=3, reward_scale=0.3, discount=0.9, low_discount=0.8, hidden=(8,),
)  # fmt: skip


def config_of(id: str, **changes: Any) -> hiro.Config:
    return replace(CONFIG, position=() if id == MAZE else tuple(POSITION[id]), **changes)


def moved(net: torch.nn.Module) -> None:
    """Away from the small outputs that actors begin with."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))


class Life:
    """What a policy lived through, column by column, and the store that it lies in."""

    def __init__(self, id: str, exploration: float = 1.0, **changes: Any) -> None:
        torch.manual_seed(3)
        env = make(id, ARGUMENTS[id], COLUMNS)
        self.id, self.config, self.spec = id, config_of(id, **changes), env.spec
        self.player = hiro.policy(self.config, env.spec, None)
        moved(self.player.net)
        schema = trajectory_schema(env.spec, self.player.extras, self.player.carry)
        experience = self.config.experience()
        self.store: Any = own_store(experience, schema, env.spec, range(COLUMNS), 1, 1, None)
        lane = Lane(env, self.player, np.arange(COLUMNS), streams(1, "act", range(COLUMNS), 0))
        lane.start(episode_seeds(1, "episode", range(COLUMNS), 0))
        lane.explore(np.full(COLUMNS, exploration))
        vector, trees = Vector([lane], Timings()), []
        for _ in range(FRAGMENTS):
            trees.append(allocate(schema, UNROLL, COLUMNS, 1))
            vector.collect(trees[-1], lambda: 0)
            self.store.insert(trees[-1])
        self.rows: Tree = {}
        for name in ("action", "reward", "discount", "extras/goal", "extras/decides", "extras/target", "extras/clock"):
            self.rows[name.removeprefix("extras/")] = np.concatenate([tree[name] for tree in trees])
        for name in ("observation", "first"):
            self.rows[name] = np.concatenate([*(tree[name][:-1] for tree in trees), trees[-1][name][-1:]])
        self.valid = ~self.rows["first"][1:]

    def batch(self, name: str) -> Trajectory:
        ((tree,), _) = self.store.sample(0)[name]
        return trajectory([tree], self.spec)

    def row(self, batch: Trajectory, item: int) -> tuple[int, int]:
        """(t, column) of an item's row 0, told by the env steps before it."""
        column = int(batch.column[item])
        before = np.concatenate([[0], self.valid[:, column].cumsum()])[:-1]
        (t,) = np.flatnonzero((before == int(batch.start[item])) & self.valid[:, column])
        return int(t), column

    def position(self, t: int, column: int) -> Array:
        return np.asarray(self.rows["observation"][t, column][POSITION[self.id]], float)

    def low(self, net: Any, t: int, column: int, goal: Array) -> Array:
        """μ_lo(x, g): it sees all but the task's goal, and g in the scale of its range."""
        x = self.rows["observation"][t, column][:5]  # the counter's has three entries
        seen = np.concatenate([x, goal / np.array(self.config.goal_range)]).astype(np.float32)
        return np.asarray(net.low(torch.from_numpy(seen)[None])[0].detach(), float)

    def segment(self, t: int, column: int) -> int:
        """m, moves of the goal that is set at row t."""
        m = 0
        while m < C and self.valid[t + m, column]:
            m += 1
        return m


# ---- what the policy does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [MAZE, COUNTER])
def test_goals_stay_where_they_were_set(id: str) -> None:
    life = Life(id)
    rows, ranges = life.rows, np.array(CONFIG.goal_range)
    for column in range(COLUMNS):
        since, goal = 0, np.zeros(2)
        for t in range(len(rows["action"])):
            opens = bool(rows["first"][t, column]) or since == C
            assert rows["decides"][t, column] == opens
            here = life.position(t, column)
            if t:  # the carry before the move
                place = life.position(t - 1, column) + np.asarray(rows["goal"][t - 1, column], float)
                assert np.allclose(rows["target"][t, column], place, atol=1e-4)
                assert rows["clock"][t, column] == C - since
            if opens:
                since, goal = 0, np.asarray(rows["goal"][t, column], float)
                assert (np.abs(goal) <= ranges + 1e-6).all()
            else:
                goal = life.position(t - 1, column) + goal - here  # h(s, g, s')
            since += 1
            assert np.allclose(rows["goal"][t, column], goal, atol=1e-4)
    decided = rows["goal"][rows["decides"]]
    assert (np.abs(decided) > 0.99 * ranges).any(0).all(), "σ = 1 reaches the range of each entry"


def test_without_noise_each_level_does_what_its_network_says() -> None:
    life = Life(MAZE, exploration=0.0)
    net, ranges = life.player.net, np.array(CONFIG.goal_range)
    for column in range(COLUMNS):
        for t in range(40):
            x, goal = life.rows["observation"][t, column], life.rows["goal"][t, column]
            if life.rows["decides"][t, column]:
                high = net.high(torch.from_numpy(x)[None])[0].detach().numpy()
                assert np.allclose(goal, high * ranges, atol=1e-5)
            assert np.allclose(life.rows["action"][t, column], life.low(net, t, column, goal), atol=1e-5)


def test_noise_is_scaled_to_the_range_of_each_level() -> None:
    spec = Spec("free", (3,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
    player = hiro.policy(replace(CONFIG, position=(0, 1)), spec, None)
    n = 4000
    step = Step(torch.zeros(n, 3), torch.ones(n, dtype=torch.bool), torch.zeros(n))
    output = player.act(step, player.initial_carry(n), torch.full((n,), 0.1), torch.rand(n, player.noise))
    assert np.allclose(output.extras["goal"].std(0), [0.3, 0.05], rtol=0.1)
    assert np.allclose(output.action.std(0), 0.1, rtol=0.1)
    both = torch.cat([output.extras["goal"], output.action], 1).T
    assert torch.corrcoef(both).fill_diagonal_(0).abs().max() < 0.08, "each entry has noise of its own"


# ---- what is learned from -------------------------------------------------------------------------------------------


def rolled_scores(life: Life, net: Any, t: int, column: int, m: int, candidates: Array) -> Array:
    """−½ Σ ‖a − μ_lo(x, g̃)‖² of each candidate, rolled forward by h move by move."""
    scores = []
    for candidate in candidates:
        goal, total = candidate.copy(), 0.0
        for i in range(t, t + m):
            error = np.asarray(life.rows["action"][i, column], float) - life.low(net, i, column, goal)
            total += float(error @ error)
            goal = life.position(i, column) + goal - life.position(i + 1, column)
        scores.append(-0.5 * total)
    return np.array(scores)


@pytest.mark.parametrize("id", [MAZE, COUNTER])
def test_high_transitions_are_those_of_whole_trajectories(id: str) -> None:
    life = Life(id)
    net, ranges = life.player.net, np.array(CONFIG.goal_range)
    moved(net)  # the low policy of the update is another than the one that acted
    batch = life.batch("high")
    n = len(batch.column)
    z = torch.randn(CONFIG.candidates - 2, n, 2)
    with torch.no_grad():
        got, (replaced, distance) = hiro.high_transitions(life.config, net, batch, z)
    lengths, ends, kept, left = set(), set(), 0, 0.0
    for item in range(n):
        t, column = life.row(batch, item)
        assert life.rows["decides"][t, column] and got.weight[item] == 1
        m = life.segment(t, column)
        moves = slice(t, t + m)
        goal = np.asarray(life.rows["goal"][t, column], float)
        offset = life.position(t + m, column) - life.position(t, column)
        draws = offset + 0.5 * ranges * z[:, item].numpy()
        candidates = np.clip(np.stack([goal, offset, *draws]), -ranges, ranges)
        scores = rolled_scores(life, net, t, column, m, candidates)
        best = int(scores.argmax())
        assert np.sort(scores)[-1] - np.sort(scores)[-2] > 1e-6 or (candidates[best] == ranges).any()
        assert np.allclose(got.action[item], candidates[best] / ranges, atol=1e-5)
        reward = 0.3 * float(life.rows["reward"][moves, column].sum())
        terminal = bool((life.rows["discount"][moves, column] == 0).any())
        assert np.isclose(float(got.reward[item]), reward, rtol=1e-5)
        assert np.isclose(float(got.factor[item]), 0.0 if terminal else 0.9), "γ once for each goal"
        assert np.array_equal(got.x[item], life.rows["observation"][t, column])
        assert np.array_equal(got.behind[item], life.rows["observation"][t + m, column])
        lengths.add(m)
        ends.add((m < C, terminal))
        kept += best == 0
        left += float(np.linalg.norm(goal - offset))
    assert {C, 3 if id == MAZE else 2} <= lengths and (True, False) in ends
    assert id == MAZE or (True, True) in ends
    assert 0 < kept < n and float(replaced) == n - kept and np.isclose(float(distance), left, rtol=1e-4)


def test_one_candidate_leaves_goals_as_they_were_set() -> None:
    life = Life(MAZE, candidates=1)
    batch = life.batch("high")
    got, (replaced, _) = hiro.high_transitions(life.config, life.player.net, batch, torch.zeros(0, 40, 2))
    assert torch.allclose(got.action * torch.tensor(CONFIG.goal_range), batch.extras["goal"][0]) and replaced == 0


def test_the_goal_that_made_the_moves_is_found_again() -> None:
    """Greedy moves were made for the goal that was set: no candidate scores better, unless the low policy changed."""
    life = Life(MAZE, exploration=0.0)
    batch, z = life.batch("high"), torch.randn(4, 40, 2)
    with torch.no_grad():
        got, (replaced, _) = hiro.high_transitions(life.config, life.player.net, batch, z)
        assert replaced == 0 and torch.allclose(got.action * life.player.net.limit, batch.extras["goal"][0])
        moved(life.player.net.low)
        assert hiro.high_transitions(life.config, life.player.net, batch, z)[1][0] > 5


@pytest.mark.parametrize("id", [MAZE, COUNTER])
def test_low_transitions_keep_the_goal_in_its_place(id: str) -> None:
    life = Life(id)
    batch, ranges = life.batch("low"), np.array(CONFIG.goal_range)
    got = hiro.low_transitions(life.config, life.player.net, batch)
    before_new, terminals = 0, 0
    for item in range(len(batch.column)):
        t, column = life.row(batch, item)
        goal = np.asarray(life.rows["goal"][t, column], float)
        here, there = life.position(t, column), life.position(t + 1, column)
        after = here + goal - there  # also where the high level sets another one at t + 1
        before_new += t + 1 < len(life.rows["goal"]) and bool(life.rows["decides"][t + 1, column])
        x, behind = (life.rows["observation"][row, column][:5] for row in (t, t + 1))
        assert np.isclose(float(got.reward[item]), -np.sqrt((after**2).sum()), rtol=1e-4, atol=1e-5)
        assert np.allclose(got.x[item], np.concatenate([x, goal / ranges]), atol=1e-5)
        assert np.allclose(got.behind[item], np.concatenate([behind, after / ranges]), atol=1e-4)
        assert np.array_equal(got.action[item], life.rows["action"][t, column]) and got.weight[item] == 1
        terminal = life.rows["discount"][t, column] == 0
        terminals += terminal
        assert np.isclose(float(got.factor[item]), 0.0 if terminal else 0.8)
    assert before_new > 5 and (id == MAZE or terminals > 0)


def test_equations_of_goals_by_hand() -> None:
    s, g, behind = (torch.tensor([x]) for x in ([1.0, 2.0], [0.5, -1.0], [4.5, -3.0]))
    assert moved_goal(s, g, behind).tolist() == [[-3.0, 4.0]]
    assert goal_reward(s, g, behind).tolist() == [-5.0], "the distance, not its square"
    candidates = goal_candidates(g, behind - s, torch.tensor([[[1.0, -2.0]], [[-8.0, 0.5]]]), torch.tensor([2.0, 4.0]))
    assert candidates.tolist() == [[[0.5, -1.0]], [[2.0, -4.0]], [[2.0, -4.0]], [[-2.0, -4.0]]]


# ---- steps ----------------------------------------------------------------------------------------------------------


def learner_of(life: Life, **changes: Any) -> hiro.Learner:
    config = replace(life.config, **changes)
    learner = hiro.Learner(config, life.spec, None, life.player, Alone())
    for level in learner.levels.values():
        for flat in (*level.targets.values(), level.optimizers["critics"].flat):
            flat.data.add_(0.1 * torch.randn_like(flat.data))
    return learner


def twin_of(level: hiro.Level, config: hiro.Config) -> td3.Learner:
    """TD3 with the parameters of one level, in an environment that shows what the level sees."""
    fields = {
        name: getattr(config, name) for name in ("policy_delay", "tau", "target_noise", "hidden", "target_noise_clip")
    }
    rates = {name: getattr(config, name) for name in ("actor_learning_rate", "critic_learning_rate")}
    settings: Any = td3.Config(discount=1.0, **fields, **rates)
    twin = td3.Learner(settings, level.actor.spec, None, td3.policy(settings, level.actor.spec, None), Alone())
    for flat, own in (
        (twin.weights, level.optimizers["actor"].flat),
        (twin.optimizers["critics"].flat, level.optimizers["critics"].flat),
        *((twin.targets[name], level.targets[name]) for name in ("actor", "critics")),
    ):
        flat.data.copy_(own.data)
    return twin


def as_moves(part: hiro.Transitions, like: Trajectory) -> Trajectory:
    """Transitions as items of one move that TD3 takes; the factor is its discount."""
    n = len(part.weight)
    first = torch.stack([torch.zeros(n, dtype=torch.bool), part.weight == 0])
    return replace(
        like.columns(slice(0, n)), observation=torch.stack([part.x, part.behind]), first=first, extras={},
        action=part.action[None], reward=part.reward[None], discount=part.factor[None],
        finite=torch.ones(1, n, dtype=torch.bool),
    )  # fmt: skip


def test_each_level_steps_as_td3_does() -> None:
    """Three updates: parameters and targets of both levels are those of two TD3 learners fed with their transitions."""
    life = Life(MAZE)
    learner = learner_of(life, target_noise=0.0, tau=0.1)
    twins = {name: twin_of(level, learner.config) for name, level in learner.levels.items()}
    for update in range(3):
        batches = {name: trajectory(trees, life.spec) for name, (trees, _) in life.store.sample(update).items()}
        z = learner._normals(0, batches["high"], (4, 2)).movedim(1, 0)
        with torch.no_grad():
            high, (replaced, distance) = hiro.high_transitions(learner.config, learner.net, batches["high"], z)
            low = hiro.low_transitions(learner.config, learner.net, batches["low"])
        figures = learner.update(batches, 0.0).metrics
        expected = twins["high"].update({"items": as_moves(high, batches["high"])}, 0.0).metrics
        rows = []
        for k in range(3):
            part = hiro.Transitions(**{name: x[k::3] for name, x in vars(low).items()})
            rows.append(twins["low"].update({"items": as_moves(part, batches["low"])}, 0.0).metrics)
        for name in ("loss", "q_mean", "target_mean", "grad_norm"):
            assert np.isclose(figures[f"high_{name}"], expected[name], rtol=1e-4), name
            assert np.isclose(figures[f"low_{name}"], np.mean([row[name] for row in rows]), rtol=1e-4), name
        assert np.isclose(figures["relabelled"], float(replaced) / 40)
        assert np.isclose(figures["distance"], float(distance) / 40)
        assert np.isclose(figures["low_reward"], float(low.reward.mean()), rtol=1e-5)
        for name, level in learner.levels.items():
            twin = twins[name]
            assert level.rounds == twin.rounds == (update + 1) * (1 if name == "high" else 3)
            for own, other in (
                (level.optimizers["actor"].flat, twin.weights),
                (level.optimizers["critics"].flat, twin.optimizers["critics"].flat),
                *((level.targets[x], twin.targets[x]) for x in ("actor", "critics")),
            ):
                assert torch.allclose(own.data, other.data, atol=1e-6), name


def test_targets_are_smoothed_by_noise_of_each_levels_own() -> None:
    life = Life(MAZE)
    learner = learner_of(life, target_noise=0.5, target_noise_clip=0.3)
    batches = {name: trajectory(trees, life.spec) for name, (trees, _) in life.store.sample(0).items()}
    level, high = learner.levels["high"], learner._normals(1, batches["high"], (2,))
    low = learner._normals(2, batches["low"], (2,))
    assert not torch.allclose(high, low[:40]) and not torch.allclose(high, learner._normals(0, batches["high"], (2,)))
    candidates = learner._normals(0, batches["high"], (4, 2)).movedim(1, 0)
    with torch.no_grad():
        part, _ = hiro.high_transitions(learner.config, learner.net, batches["high"], candidates)
        action = level.target_actor(part.behind) + (0.5 * high).clamp(-0.3, 0.3)
        y = part.reward + part.factor * level.target_critics(part.behind, action.clamp(-1, 1)).min(0).values
    assert np.isclose(learner.update(batches, 0.0).metrics["high_target_mean"], float(y.mean()), rtol=1e-5)
    assert not torch.equal(learner._normals(1, batches["high"], (2,)), high), "the next update has others"


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_what_it_refuses() -> None:
    box = Actions("box", (1,), (-1.0,), (1.0,))
    cases = [
        (Spec("a", (3,), "float32", Actions("discrete", (2,))), {}, "discrete"),
        (Spec("a", (36, 36), "uint8", box), {}, "uint8"),
        (Spec("a", (3,), "float32", box), {"position": (0, 3)}, r"entries 0\.\.2"),
        (Spec("a", (3,), "float32", box), {"position": (1, 1)}, "each once"),
        (Spec("a", (3,), "float32", box), {"goal_range": (1.0, 2.0)}, "a range for each"),
    ]
    for spec, changes, words in cases:
        with pytest.raises(Unsuited, match=words):
            hiro.policy(hiro.Config(**changes), spec, None)
    maze = hiro.policy(hiro.Config(), make(MAZE, {}, 1).spec, None)
    assert maze.net.entries.tolist() == [0, 1] and maze.net.seen.tolist() == [0, 1, 2, 3, 4]
