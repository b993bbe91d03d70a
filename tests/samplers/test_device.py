"""The device sampler against a twin that plays one column at a time in plain NumPy, and hashes with Python's integers.

Mutations seen to fail: the row counted after the episode begins; begin and move from the same uniforms; a key that
forgets the attempt; a reward kept on the row that begins an episode; `follow` forgotten; frames of a stack kept over an
episode's end; uniforms that depend on how many a row has; the ended mask, the row or the carry left out of the state; a
length that counts the row of a new episode; the policy shown what is not finite, or a return that carries it on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.make import describe
from hpc_rl.envs.of_rules import on_device
from hpc_rl.envs.toy import Toy
from hpc_rl.envs.toys import counter
from hpc_rl.formulas.counter_hash import mixed, uniforms
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.samplers.base import PURPOSES, Timings
from hpc_rl.samplers.columns import chosen, merged
from hpc_rl.samplers.device import Device
from hpc_rl.samplers.uniforms import ACT, BEGIN, FRAGMENT, MOVE, keys_of
from hpc_rl.types import ActOutput, Array, Leaf, Numbers, RulesState, Schema, Spec, Step, Tree
from tests.contract.batches import WHOLE, config_of, policy_of

SEED, STEPS = 5, 17
MASK = (1 << 64) - 1
PLACES: list[tuple[str, dict[str, Any]]] = [
    ("toy/counter", {}),
    ("toy/chain", {"length": 3}),
    ("toy/catch", {"pixels": True, "stack": 3}),
    ("toy/four_rooms", {"size": 5, "limit": 9}),
    ("toy/point_maze", {"steps": 9}),
    ("toy/goal_mountaincar", {"limit": 20}),
    ("toy/deep_sea", {"size": 5}),
    ("toy/tictactoe", {}),
    ("toy/connect_four", {"rows": 4, "columns": 5}),
    ("toy/cartpole", {"limit": 30}),
    ("toy/pendulum", {"limit": 20}),
    ("toy/mountaincar", {"limit": 20}),
    ("toy/mountaincar", {"limit": 4, "repeat": 5}),
    ("toy/acrobot", {"limit": 20}),
]
IDS = [id for id, _ in PLACES]


class Hashed:
    """A policy that acts by its uniforms alone, and remembers how often it has acted in an episode."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.net = spec, nn.Linear(1, 1)
        self.noise, self.fragment_noise = 2, 1
        self.extras: Schema = {"u": Leaf((3,), "float32")}
        self.carry: Schema = {"acted": Leaf((), "int64", "fragment")}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {"acted": torch.zeros(columns, dtype=torch.int64)}

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        acted = torch.where(step.first, 0, carry["acted"]) + 1
        action = torch.from_numpy(action_of(self.spec, noise.numpy()))
        return ActOutput(action, {"acted": acted}, {"u": noise})


def action_of(spec: Spec, noise: Array) -> Array:
    """[n, *A] of uniforms [n, 3]."""
    if spec.actions.kind == "box":
        return np.repeat(2 * noise[:, 1:2] - 1, spec.actions.sizes[0], 1).astype(np.float32)
    action: Array = np.floor(noise[:, 1] * spec.actions.sizes[0]).astype(np.int64)
    return action


def hashed(key: int, salt: int) -> int:
    """SplitMix64 with Python's integers."""
    z = (key + (salt + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def twin_key(column: int, attempt: int = 0) -> int:
    return hashed(hashed(hashed(SEED, PURPOSES["act"]), attempt), column)


def drawn(key: int, purpose: int, row: int, count: int) -> Array:
    """float32 [1, count]."""
    at = hashed(hashed(key, purpose), row)
    return np.array([[(hashed(at, k) >> 40) / 2**24 for k in range(count)]], np.float32)


def twin(toy: Toy, column: int, fragments: int) -> dict[str, list[Any]]:
    """What one column records, over all its rows."""
    rules, key, spec = toy.rules, twin_key(column), toy.rules.spec
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observation", "first", "action", "reward", "discount", "acted")
    }
    rows |= {name: [] for name in ("episode_return", "episode_length", "start", "noise")}
    state, first, ended = rules.begin(drawn(key, BEGIN, 0, rules.begin_uniforms)), True, False
    acted = steps = length = 0
    returned = np.float32(0)
    for row in range(fragments * STEPS):
        if row % STEPS == 0:
            fixed = drawn(key, FRAGMENT, row, 1)
            rows["noise"].append(fixed[0])
            rows["start"].append(steps)
        rows["observation"].append(np.asarray(rules.show(state))[0])
        rows["first"].append(first)
        rows["acted"].append(acted)
        acted = 1 if first else acted + 1
        action = action_of(spec, np.concatenate([fixed, drawn(key, ACT, row, 2)], 1))
        rows["action"].append(action[0])
        if ended:
            fresh = rules.begin(drawn(key, BEGIN, row + 1, rules.begin_uniforms))
            state = toy.follow(state, fresh) if toy.follow else fresh
            rows["reward"].append(0.0)
            rows["discount"].append(1.0)
            first, ended = True, False
        else:
            state, reward, discount, truncated = rules.move(state, action, drawn(key, MOVE, row, rules.move_uniforms))
            rows["reward"].append(float(reward[0]))
            rows["discount"].append(float(discount[0]))
            first, ended = False, bool(discount[0] == 0 or truncated[0])
            steps, length, returned = steps + 1, length + 1, returned + np.float32(reward[0])
        rows["episode_return"].append(returned if ended else np.nan)
        rows["episode_length"].append(length if ended else 0)
        length, returned = (0, np.float32(0)) if ended else (length, returned)
    rows["observation"].append(np.asarray(rules.show(state))[0])
    rows["first"].append(first)
    return rows


def sampler(id: str, arguments: dict[str, Any], columns: Array, policy: Any = None) -> tuple[Device, Tree]:
    toy = on_device(id, arguments, torch)
    return made(toy, columns, policy or Hashed(toy.rules.spec))


def made(toy: Toy, columns: Array, policy: Any) -> tuple[Device, Tree]:
    keys = keys_of(SEED, "act", columns, 0)
    schema = trajectory_schema(toy.rules.spec, policy.extras, policy.carry, policy.fragment_noise)
    steps = np.zeros(len(columns), np.int64)
    device = Device(toy, policy, columns, keys, steps, 0, Timings())
    return device, allocate(schema, STEPS, len(columns), toy.rules.spec.stack)


def fragments(device: Device, tree: Tree, count: int) -> list[Tree]:
    trees = []
    for version in range(count):
        device.collect(tree, lambda: version)  # noqa: B023  # called before the next round
        trees.append({name: x.copy() for name, x in tree.items()})
    return trees


def whole(trees: list[Tree], name: str) -> Array:
    """All rows of a leaf, the last observation and first included."""
    joined: Array = np.concatenate([tree[name][:STEPS] for tree in trees])
    return np.concatenate([joined, trees[-1][name][STEPS:]])


@pytest.mark.parametrize(("id", "arguments"), PLACES, ids=IDS)
def test_every_column_plays_what_its_hashes_say(id: str, arguments: dict[str, Any]) -> None:
    columns = np.array([0, 3, 70_000], np.int32)
    device, tree = sampler(id, arguments, columns)
    trees = fragments(device, tree, 3)
    stack = device.spec.stack
    ends = 0
    for k, column in enumerate(columns):
        rows = twin(Toy(TOYS[id](np, **arguments).rules, TOYS[id](np, **arguments).follow), int(column), 3)
        for name in ("action", "reward", "discount", "episode_return", "episode_length", "first"):
            assert np.allclose(whole(trees, name)[:, k], rows[name], rtol=1e-5, atol=1e-5, equal_nan=True), (
                name,
                column,
            )
        frames = np.concatenate([tree["observation"][stack - 1 : stack - 1 + STEPS, k] for tree in trees])
        frames = np.concatenate([frames, trees[-1]["observation"][-1:, k]])
        assert np.allclose(frames, rows["observation"], atol=2e-4), column
        assert [tree["start"][k] for tree in trees] == rows["start"]
        assert np.array([tree["noise"][k] for tree in trees]).tolist() == np.array(rows["noise"]).tolist()
        assert [tree["carry/acted"][k] for tree in trees] == [rows["acted"][row] for row in range(0, 3 * STEPS, STEPS)]
        assert (whole(trees, "version")[:, k] == np.repeat(range(3), STEPS)).all()
        ends += sum(rows["episode_length"][row] > 0 for row in range(3 * STEPS))
        assert device.steps[k] == rows["start"][-1] + sum(~np.array(rows["first"][-STEPS:]))
    assert ends > 1, "no episode ended"


def test_a_stack_is_what_the_environment_pads_it_with() -> None:
    """The frames before a fragment's first row are those of the episode, and zeros before it began."""
    device, tree = sampler("toy/catch", {"pixels": True, "stack": 3}, np.arange(4, dtype=np.int32))
    trees = fragments(device, tree, 6)
    frames = np.concatenate([tree["observation"][2 : 2 + STEPS] for tree in trees])
    first = np.concatenate([tree["first"][:STEPS] for tree in trees])
    young = 0
    for k, tree in enumerate(trees):
        for column in range(4):
            row = k * STEPS
            begun = row - np.flatnonzero(first[: row + 1, column])[-1]  # rows since the episode began
            for back in (1, 2):
                expected = frames[row - back, column] if back <= begun else np.zeros_like(frames[0, 0])
                assert (tree["observation"][2 - back, column] == expected).all()
            young += 0 < begun < 2
    assert young, "no fragment began within an episode's first rows"


@pytest.mark.parametrize(("id", "arguments"), PLACES, ids=IDS)
def test_neither_width_nor_rank_changes_a_column(id: str, arguments: dict[str, Any]) -> None:
    """1 024 columns together, or in parts of 256, 64 and 19: bit by bit the same."""
    columns = np.arange(1024, dtype=np.int32)
    expected = fragments(*sampler(id, arguments, columns), 2)
    for part in (columns[:256], columns[960:], columns[200:219], columns[1023:]):
        for tree, other in zip(expected, fragments(*sampler(id, arguments, part), 2), strict=True):
            for name, x in other.items():
                flat = x.ndim == 1 or name in ("noise", "carry/acted")
                assert x.tobytes() == (tree[name][part] if flat else tree[name][:, part]).tobytes(), name


def test_with_a_network_all_widths_act_alike() -> None:
    """Over 64 moves: another batch rounds the last digit of a logit otherwise, and no action turns on it."""
    spec = describe("toy/cartpole", {})
    policy = policy_of("ppo", spec, config_of("ppo", **WHOLE))
    columns = np.arange(64, dtype=np.int32)
    expected = fragments(*sampler("toy/cartpole", {}, columns, policy), 4)
    assert len({tree["action"].tobytes() for tree in expected}) > 1
    for part in (columns[:16], columns[48:]):
        for tree, other in zip(expected, fragments(*sampler("toy/cartpole", {}, part, policy), 4), strict=True):
            assert (tree["action"][:, part] == other["action"]).all()


@pytest.mark.parametrize(("id", "arguments"), [PLACES[0], PLACES[2], PLACES[9]], ids=["counter", "catch", "cartpole"])
def test_a_state_goes_on_on_other_ranks(id: str, arguments: dict[str, Any]) -> None:
    columns = np.arange(6, dtype=np.int32)
    one, tree = sampler(id, arguments, columns)
    fragments(one, tree, 2)
    state = merged([chosen(merged([one.state()]), [k]) for k in (4, 1, 0, 5, 3, 2)])
    expected = fragments(one, tree, 3)
    for part in (columns[:4], columns[4:]):
        other, narrow = sampler(id, arguments, part)
        other.load(state)
        for tree, again in zip(expected, fragments(other, narrow, 3), strict=True):
            for name, x in again.items():
                flat = x.ndim == 1 or name in ("noise", "carry/acted")
                assert x.tobytes() == (tree[name][part] if flat else tree[name][:, part]).tobytes(), name


def test_attempts_without_a_state_draw_anew() -> None:
    columns = np.arange(3, dtype=np.int32)
    assert keys_of(SEED, "act", columns, 0).view(np.uint64).tolist() == [twin_key(k) for k in range(3)]
    assert keys_of(SEED, "act", columns, 2).view(np.uint64).tolist() == [twin_key(k, 2) for k in range(3)]


def test_what_is_drawn_for_one_thing_is_not_drawn_for_another() -> None:
    assert len({ACT, BEGIN, MOVE, FRAGMENT}) == 4


@pytest.mark.parametrize(("id", "dtype"), [("toy/cartpole", torch.float32), ("toy/point_maze", torch.float64)])
def test_states_have_the_numbers_that_they_compute_with(id: str, dtype: torch.dtype) -> None:
    """float32, or from the beginning float64 where a constant of the Rules would make them wider."""
    device, tree = sampler(id, {}, np.arange(2, dtype=np.int32))
    begun = {name: x.dtype for name, x in device.row.memory.items()}
    assert dtype in begun.values()
    fragments(device, tree, 1)
    assert {name: x.dtype for name, x in device.row.memory.items()} == begun


@pytest.mark.parametrize("double", [False, True])
def test_numpy_and_torch_draw_alike(double: bool) -> None:
    key, row = np.arange(5000) * 7919 - 10**15, np.arange(5000) // 3
    one = uniforms(np, mixed(key, row), 5, double)
    other = uniforms(torch, mixed(torch.from_numpy(key), torch.from_numpy(row)), 5, double).numpy()
    assert one.tobytes() == other.tobytes() and one.dtype == other.dtype == (np.float64 if double else np.float32)
    assert (one[:, :2] == uniforms(np, mixed(key, row), 2, double)).all()
    assert one.min() >= 0 and one.max() < 1
    assert abs(one.mean() - 0.5) < 3 / np.sqrt(12 * one.size) and abs(np.corrcoef(one.T) - np.eye(5)).max() < 0.05


def broken(xp: ModuleType, value: float, where: str) -> Toy:
    """The counter, whose column 0 pays or shows ``value`` with its fourth move."""
    toy = counter(xp)

    def bad(state: RulesState) -> Numbers:
        return (state["total"] == 4) & (xp.arange(len(state["total"])) == 0)

    def move(state: RulesState, action: Numbers, u: Numbers) -> Any:
        after, reward, *rest = toy.rules.move(state, action, u)
        return after, xp.where(bad(after) & (where == "reward"), value, reward), *rest

    def show(state: RulesState) -> Numbers:
        return xp.where((bad(state) & (where == "observation"))[:, None], value, toy.rules.show(state))

    return replace(toy, rules=replace(toy.rules, move=move, show=show))


@pytest.mark.parametrize(("where", "value"), [("reward", np.inf), ("observation", np.nan)])
def test_rows_that_are_not_finite(where: str, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    """They are recorded as they came, and neither seen by the policy nor carried on."""
    seen: list[Tensor] = []
    toy = broken(torch, value, where)
    policy = Hashed(toy.rules.spec)
    act: Callable[..., ActOutput] = policy.act

    def watched(step: Step, *rest: Any) -> ActOutput:
        seen.extend([step.observation, step.reward])
        return act(step, *rest)

    policy.act = watched  # type: ignore[method-assign, assignment]
    device, tree = made(toy, np.arange(2, dtype=np.int32), policy)
    fragments(device, tree, 1)
    assert (~np.isfinite(tree[where][3 if where == "reward" else 4, 0])).all() and np.isfinite(tree[where][:, 1]).all()
    assert all(x.isfinite().all() for x in seen)
    lost = 4 if where == "reward" else 0  # of 1 + 2 + 3 + 4 + 5
    assert tree["episode_return"][4].tolist() == [15 - lost, 15]
    assert device.figures() == {"bad_rows": 1.0}
    assert "toy/counter, column 0, env step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("id", "arguments", "words"),
    [
        ("CartPole-v1", {}, "CartPole-v1 is not made of Rules"),
        ("ALE/Pong-v5", {}, "is not made of Rules"),
        ("mixture", {"ids": ["toy/catch"]}, "is not made of Rules"),
        ("toy/latency", {}, "does it on the host"),
        ("toy/tictactoe", {"opponent": "random"}, "moves on the host"),
    ],
)
def test_what_is_no_tensor_is_refused(id: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadEnvironment, match=words) as told:
        on_device(id, arguments, np)
    assert 'use sampler = "vector"' in str(told.value)


def strange(change: str) -> Toy:
    """The counter, one of whose answers is not what Rules promise."""
    toy = counter(torch)
    rules = toy.rules

    def move(state: RulesState, action: Numbers, u: Numbers) -> Any:
        after, reward, discount, truncated = rules.move(state, action, u)
        changed = {
            "a reward of all": (after, reward[None], discount, truncated),
            "no tensor": (after, 1.0, discount, truncated),
            "ends in numbers": (after, reward, discount, truncated * 1.0),
            "a smaller state": ({"episode": after["episode"]}, reward, discount, truncated),
            "a state of one": ({**after, "step": after["step"][:1]}, reward, discount, truncated),
            "another device": (after, reward.to("meta"), discount, truncated),
        }
        return changed.get(change, (after, reward, discount, truncated))

    def show(state: RulesState) -> Numbers:
        shown = rules.show(state)
        return {"a frame too long": torch.cat([shown, shown], 1), "numbers": shown.long()}.get(change, shown)

    return replace(toy, rules=replace(rules, move=move, show=show))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("a reward of all", r"reward is \[1, 2\] float32 on cpu, not \[2\] numbers on cpu"),
        ("no tensor", "reward is a float, not a tensor"),
        ("ends in numbers", r"truncated is \[2\] float32 on cpu, not \[2\] bool on cpu"),
        ("a smaller state", "a state after a move has the names episode, and one that begins episode, step, total"),
        ("a state of one", r"state\['step'\] is \[1\] int64 on cpu, not \[2\] int64 on cpu"),
        ("another device", r"reward is \[2\] float32 on meta, not \[2\] numbers on cpu"),
        ("a frame too long", r"a frame is \[2, 6\] float32 on cpu, not \[2, 3\] floats on cpu"),
        ("numbers", r"a frame is \[2, 3\] int64 on cpu, not \[2, 3\] floats on cpu"),
    ],
)
def test_answers_that_are_not_what_rules_promise_are_refused(change: str, words: str) -> None:
    toy = strange(change)
    with pytest.raises(BadEnvironment, match=words):
        made(toy, np.arange(2, dtype=np.int32), Hashed(toy.rules.spec))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_moves_are_the_same_moves() -> None:
    """To rounding: sines and sums of the compiled pass may differ in their last digit."""
    columns, trees = np.arange(64, dtype=np.int32), []
    toy = on_device("toy/pendulum", {"limit": 9}, torch)
    for compiled in (False, True):
        policy, steps = Hashed(toy.rules.spec), np.zeros(64, np.int64)
        device = Device(toy, policy, columns, keys_of(SEED, "act", columns, 0), steps, 0, Timings(), compiled=compiled)
        schema = trajectory_schema(toy.rules.spec, policy.extras, policy.carry, policy.fragment_noise)
        trees.append(fragments(device, allocate(schema, STEPS, 64, 1), 2)[1])
    eager, fused = trees
    for name, x in eager.items():
        assert np.allclose(x, fused[name], atol=1e-4, equal_nan=True), name
    assert np.isfinite(eager["episode_return"]).any()


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> Callable[..., Any]:
        def call(*rest: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\nand a long list")

        return call

    monkeypatch.setattr(torch, "compile", refused)
    toy, columns = on_device("toy/cartpole", {}, torch), np.arange(2, dtype=np.int32)
    policy, steps = Hashed(toy.rules.spec), np.zeros(2, np.int64)
    device = Device(toy, policy, columns, keys_of(SEED, "act", columns, 0), steps, 0, Timings(), compiled=True)
    schema = trajectory_schema(toy.rules.spec, policy.extras, policy.carry, policy.fragment_noise)
    with pytest.raises(BadEnvironment, match=r"cannot be compiled: No working C\+\+ compiler found; set resources"):
        device.collect(allocate(schema, STEPS, 2, 1), lambda: 0)
