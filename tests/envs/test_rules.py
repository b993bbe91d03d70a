"""Rules are pure: the same numbers from NumPy and torch, arguments left as they were, nothing random but ``u``.

Mutations seen to fail: catch writing into ``state["row"]``; its ball drawn by np.random; a mirror that keeps its
actions; success read while an episode goes on; what lasts over the counter's episodes begun anew; ``state`` of a Step
taken from the first lane alone; |discount| in δ or in the trace of `gae`; bitflip's goal judged by the bits before the
move, or a time limit where it was reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.make import make
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.envs.toys import catch, chain
from hpc_rl.formulas.returns import gae
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.samplers.base import Timings, streams
from hpc_rl.samplers.lanes import Lane, act
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage import recorded, segments, trajectories
from hpc_rl.types import Actions, ActOutput, Array, Rules, Schema, Spec, Step, Tree

CASES: list[tuple[str, dict[str, Any]]] = [
    ("toy/counter", {}),
    ("toy/box_counter", {}),
    ("toy/chain", {"length": 3}),
    ("toy/catch", {}),
    ("toy/catch", {"rows": 4, "columns": 3, "pixels": True}),
    ("toy/latency", {"step_s": 1e-5, "reset_s": 0.0, "end_probability": 0.2}),
    ("toy/faulty", {"at": 10_000}),
    ("toy/tmaze", {"length": 3}),
    ("toy/grid", {"size": 3}),
    ("toy/deep_sea", {"size": 3}),
    ("toy/four_rooms", {"size": 5, "limit": 9}),
    ("toy/point_maze", {"steps": 9}),
    ("toy/pilco_pendulum", {"moves": 9}),
    ("toy/pilco_cartpole", {"moves": 9, "noise": [0.0, 0.1, 0.2, 0.3]}),
    ("toy/cartpole", {}),
    ("toy/pendulum", {"limit": 20}),
    ("toy/mountaincar", {"limit": 20}),
    ("toy/mountaincar", {"limit": 4, "repeat": 5}),
    ("toy/acrobot", {"limit": 20}),
    ("toy/maze", {"steps": 20}),
    ("toy/keychest", {}),
    ("toy/six_states", {}),
    ("toy/bitflip", {"bits": 3}),
    ("toy/goal_counter", {}),
    ("toy/goal_mountaincar", {"limit": 20}),
    ("toy/goal_pendulum", {"limit": 20}),
    ("toy/tictactoe", {}),
    ("toy/connect_four", {}),
    ("toy/othello", {"size": 4}),
    ("toy/othello", {"size": 8}),
    ("toy/go", {"limit": 9}),
]
N, MOVES = 6, 25


def array(x: Any) -> np.ndarray:
    return x.numpy() if isinstance(x, Tensor) else np.asarray(x)


def arrays(state: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: array(x).copy() for name, x in state.items()}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, x in left.items():
        assert x.dtype == right[name].dtype and np.allclose(x, right[name], rtol=1e-12), name


def actions_of(spec: Spec, rng: np.random.Generator, columns: int) -> Array:
    """Any actions [columns, *A]."""
    if spec.actions.kind == "box":
        return rng.uniform(-1, 1, (columns, *spec.actions.shape)).astype(np.float32)
    return rng.integers(0, spec.actions.sizes[0], columns)


def played(rules: Rules, convert: Any) -> list[dict[str, np.ndarray]]:
    """Everything that MOVES moves of N games give, games that ended going on as if they had not."""
    rng = np.random.default_rng(5)
    state = rules.begin(convert(rng.random((N, rules.begin_uniforms))))
    rows = []
    for _ in range(MOVES):
        before = arrays(state)
        action = convert(actions_of(rules.spec, rng, N))
        following, reward, discount, truncated = rules.move(
            state, action, convert(rng.random((N, rules.move_uniforms)))
        )
        same(before, arrays(state))  # nothing was written in place
        shown = array(rules.show(state))
        assert shown.shape == (N, *rules.spec.frame) and shown.dtype == rules.spec.dtype
        assert array(reward).shape == array(discount).shape == array(truncated).shape == (N,)
        assert array(truncated).dtype == bool
        floats = {"reward": array(reward).astype(np.float32), "discount": array(discount).astype(np.float32)}
        rows.append({**before, **floats, "truncated": array(truncated), "shown": shown})
        state = following
        if "row" in state:  # a ball below the board is in no row
            state = {**state, "row": state["row"] % (rules.spec.frame[0] if len(rules.spec.frame) > 1 else 10)}
    return rows


@pytest.mark.parametrize(("id", "arguments"), CASES)
def test_numpy_and_torch_give_the_same_numbers(id: str, arguments: dict[str, Any]) -> None:
    ours, theirs = TOYS[id](np, **arguments).rules, TOYS[id](torch, **arguments).rules
    assert ours.spec == theirs.spec == make(id, arguments, 1).spec
    for one, other in zip(played(ours, np.asarray), played(theirs, torch.from_numpy), strict=True):
        same(one, other)


@pytest.mark.parametrize(("id", "arguments"), CASES)
def test_rules_draw_nothing(id: str, arguments: dict[str, Any]) -> None:
    rules = TOYS[id](np, **arguments).rules
    before, ours = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for one, other in zip(played(rules, np.asarray), played(rules, np.asarray), strict=True):
        same(one, other)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], ours)  # type: ignore[index]


GOALS: list[tuple[str, dict[str, Any]]] = [
    ("toy/bitflip", {"bits": 3}),
    ("toy/goal_mountaincar", {"thresholds": [1.0, 0.1]}),  # some are met by any move
    ("toy/goal_pendulum", {"thresholds": [1.5, 4.0]}),
]


@pytest.mark.parametrize(("id", "arguments"), GOALS)
def test_a_move_pays_what_its_goal_pays(id: str, arguments: dict[str, Any]) -> None:
    """Reward and discount of every move are those of the goal for what the move led to; goals change in no episode."""
    for xp, convert in ((np, np.asarray), (torch, torch.from_numpy)):
        rules = TOYS[id](xp, **arguments).rules
        assert rules.goal_reward is not None and rules.success is not None
        achieved, desired = (rules.spec.parts[name] for name in ("achieved_goal", "desired_goal"))
        rng = np.random.default_rng(6)
        state = rules.begin(convert(rng.random((200, rules.begin_uniforms))))
        for _ in range(3):
            goal = rules.show(state)[:, desired.start : desired.stop]
            action = convert(actions_of(rules.spec, rng, 200))
            state, reward, discount, _ = rules.move(state, action, convert(rng.random((200, rules.move_uniforms))))
            shown = rules.show(state)
            assert bool((shown[:, desired.start : desired.stop] == goal).all())
            judged = rules.goal_reward(shown[:, achieved.start : achieved.stop], goal)
            assert all(bool((x == y).all()) for x, y in zip((reward, discount), judged, strict=True))
            assert bool((array(discount) == 0).any()), "some games reached theirs"
            assert np.array_equal(array(rules.success(state)), array(discount) == 0)


def test_bits_flip_until_they_are_those_of_the_goal() -> None:
    rules = TOYS["toy/bitflip"](np, bits=3).rules
    state = rules.begin(np.array([[0.1, 0.9, 0.9, 0.1, 0.1, 0.9], [0.1, 0.1, 0.9, 0.1, 0.1, 0.9]]))
    assert rules.show(state).tolist() == [[1, 0, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0]]
    state, reward, discount, truncated = rules.move(state, np.array([1, 2]), np.zeros((2, 0)))
    assert rules.show(state)[:, :3].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (reward.tolist(), discount.tolist(), truncated.tolist()) == ([0, -1], [0, 1], [False, False])
    for _ in range(2):
        state, reward, discount, truncated = rules.move(state, np.array([0, 0]), np.zeros((2, 0)))
    assert (reward.tolist(), discount.tolist(), truncated.tolist()) == ([0, -1], [0, 1], [False, True])
    with pytest.raises(BadEnvironment, match="bits = 101 is refused; it must be from 1 to 100"):
        TOYS["toy/bitflip"](np, bits=101)


def test_a_game_does_not_depend_on_its_neighbours() -> None:
    rules, u = catch(np).rules, np.random.default_rng(1).random((5, 1))
    whole, alone = rules.begin(u), rules.begin(u[3:4])
    for action in (0, 2, 2, 1):
        whole = rules.move(whole, np.full(5, action), np.zeros((5, 0)))[0]
        alone = rules.move(alone, np.full(1, action), np.zeros((1, 0)))[0]
    assert np.array_equal(rules.show(whole)[3:4], rules.show(alone))


@pytest.mark.parametrize("pixels", [False, True])
def test_a_mirror_changes_no_game(pixels: bool) -> None:
    assert catch(np, columns=4).rules.symmetries == (), "no middle column"
    rules = catch(np, rows=5, columns=3, pixels=pixels).rules
    ((frames, actions),) = rules.symmetries
    rng = np.random.default_rng(2)
    state = rules.begin(rng.random((N, 1)))
    mirror = {**state, "ball": 2 - state["ball"]}
    for _ in range(4):
        assert np.array_equal(frames(rules.show(state)), rules.show(mirror))
        action = rng.integers(0, 3, N)
        state, reward, discount, _ = rules.move(state, action, np.zeros((N, 0)))
        mirror, mirrored_reward, mirrored_discount, _ = rules.move(mirror, actions(action), np.zeros((N, 0)))
        assert np.array_equal(reward, mirrored_reward) and np.array_equal(discount, mirrored_discount)


def test_success_of_an_episode_stands_where_it_ended() -> None:
    env = make("toy/chain", {"length": 3}, 2)
    env.reset(np.arange(2))
    for move in range(1, 13):
        env.send(np.array([1, 0]))  # to the right end in two moves; into the time limit
        moves = env.recv()
        assert moves.success.dtype == np.float32
        expected = [1.0 if move % 3 == 2 else np.nan, 0.0 if move == 12 else np.nan]
        assert np.array_equal(moves.success, expected, equal_nan=True), move
    assert chain(np).rules.success is not None and TOYS["toy/counter"](np).rules.success is None
    counter = make("toy/counter", {}, 1)
    counter.reset(np.zeros(1, int))
    for _ in range(5):
        counter.send(np.zeros(1, int))
        moves = counter.recv()
    assert moves.ended[0] and np.isnan(moves.success[0])


# ---- two players ----------------------------------------------------------------------------------------------------


def nim(xp: Any, /, stones: int = 5) -> Rules:
    """Players take one or two stones in turn (actions 0 and 1); who takes the last one wins 1."""

    def begin(u: Any) -> dict[str, Any]:
        return {"left": xp.zeros(len(u), dtype=xp.int64, device=u.device) + stones}

    def move(state: dict[str, Any], action: Any, u: Any) -> tuple[dict[str, Any], Any, Any, Any]:
        left = state["left"] - 1 - action
        over = left <= 0
        return {"left": left}, xp.where(over, 1.0, 0.0), xp.where(over, 0.0, -1.0), xp.zeros_like(over)

    def show(state: dict[str, Any]) -> Any:
        return xp.asarray(state["left"][:, None], dtype=xp.float32)

    def legal(state: dict[str, Any]) -> Any:
        return xp.stack([state["left"] >= 1, state["left"] >= 2], 1)

    return Rules(Spec("nim", (1,), "float32", Actions("discrete", (2,))), begin, move, show, legal=legal)


class Searching:
    """Asks the Rules what each legal action leads to, and leaves the other player a multiple of three where it can."""

    noise = fragment_noise = 0

    def __init__(self) -> None:
        self.net, self.rules = torch.nn.Linear(1, 1), nim(torch)
        self.extras: Schema = {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        assert step.state is not None and torch.equal(step.state["left"].float(), step.observation[:, 0])
        assert self.rules.legal is not None
        count = len(step.first)
        good = []
        for action in (0, 1):
            after = self.rules.move(step.state, torch.full((count,), action), torch.zeros(count, 0))[0]
            good.append((after["left"] % 3 == 0) & self.rules.legal(step.state)[:, action])
        return ActOutput(torch.where(good[1], 1, 0), {}, {})


def two_players(columns: int, steps: int, lanes: int = 1) -> tuple[Spec, Tree]:
    """One fragment of nim by a policy that searches."""
    parts, policy = [], Searching()
    for share in np.array_split(np.arange(columns), lanes):
        environment = RulesEnvironment(nim(np), len(share))
        lane = Lane(environment, policy, share, streams(3, "act", share.tolist(), 0))
        lane.start(share)
        parts.append(lane)
    tree = allocate(trajectory_schema(environment.spec, {}, {}), steps, columns, 1)
    Vector(parts, Timings()).collect(tree, lambda: 0)
    return environment.spec, tree


def test_a_policy_searches_with_the_state_of_its_step() -> None:
    """5 → 3 → 2 → 0: from five stones the first player leaves three and wins on the third move."""
    _, tree = two_players(4, 8, lanes=2)
    assert tree["observation"][:, :, 0].T.tolist() == [[5, 3, 2, 0, 5, 3, 2, 0, 5]] * 4
    assert tree["discount"].T.tolist() == [[-1, -1, 0, 1, -1, -1, 0, 1]] * 4
    assert tree["reward"].T.tolist() == [[0, 0, 1, 0, 0, 0, 1, 0]] * 4


def test_lanes_that_are_acted_for_together_each_have_their_state() -> None:
    made, trees, policy = [], [], Searching()
    for share, stones in (([0, 1], 5), ([2], 7)):
        lane = Lane(RulesEnvironment(nim(np, stones), len(share)), policy, np.array(share), streams(3, "act", share, 0))
        lane.start(np.array(share))
        trees.append(allocate(trajectory_schema(lane.environment.spec, {}, {}), 4, len(share), 1))
        lane.begin_fragment(trees[-1])
        made.append(lane)
    for _ in range(4):
        act(made, 0, Timings())
        for lane in made:
            lane.receive()
    assert trees[0]["observation"][:, :, 0].T.tolist() == [[5, 3, 2, 0, 5]] * 2
    assert trees[1]["observation"][:, :, 0].T.tolist() == [[7, 6, 5, 3, 2]]


def test_discounts_of_two_players_reach_learner_and_disk(tmp_path: Path) -> None:
    spec, tree = two_players(2, 8)
    batch = trajectory([tree], spec)
    advantage = gae(batch.reward, 0.5 * batch.discount, torch.zeros(9, 2), batch.valid.float(), 1.0)
    # γ = 0.5, V = 0: the winner's last move is worth 1, the loser's before it −γ, the winner's first one γ².
    assert advantage.T.tolist() == [[0.25, -0.5, 1.0, 0.0] * 2] * 2
    schema = trajectory_schema(spec, {}, {})
    recorder = trajectories.Recorder(
        tmp_path / "trajectories" / "a0-worker-0", schema, spec, np.arange(2), np.ones(2, bool), 0
    )
    recorder.write(tree)
    recorder.close()
    (path,) = segments.segments(tmp_path)
    assert np.array_equal(segments.read(path, "discount"), tree["discount"])
    assert np.isnan(recorded.ends(segments.describe(path), {})["success"]).all()


def test_only_environments_of_rules_in_this_process_have_a_state() -> None:
    env = make("toy/catch", {}, 3)
    env.reset(np.arange(3))
    assert env.rules_state is not None and {x.shape for x in env.rules_state.values()} == {(3,)}
    held = arrays(env.rules_state)
    kept = env.rules_state
    env.send(np.array([0, 1, 2]))
    env.recv()
    same(held, kept)
    assert make("CartPole-v1", {}, 1).rules_state is None
