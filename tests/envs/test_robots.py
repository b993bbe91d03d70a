"""Robots in batches of worlds against Gymnasium's own, world by world, on mujoco_warp's CPU backend.

Mutations seen to fail: four steps a move; forces after a move left out; a place after the move that is the next one's;
the solver's last accelerations not carried; control not scaled to its bounds; the contact cost left out; a fall that
pays; normals for uniforms at the start; a batch that is handed out and written into again.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco_warp")

from hpc_rl.envs.base import BadEnvironment  # noqa: E402
from hpc_rl.envs.make import describe, make  # noqa: E402
from hpc_rl.envs.warp import robots, worlds  # noqa: E402
from hpc_rl.samplers.columns import chosen, merged  # noqa: E402
from hpc_rl.types import Array, Rules, RulesState  # noqa: E402
from tests.samplers.test_device import fragments, sampler  # noqa: E402

THEIRS = {"warp/half_cheetah": "HalfCheetah-v5", "warp/ant": "Ant-v5", "warp/humanoid": "Humanoid-v5"}
N = 40  # worlds


def elliptic(id: str) -> Any:
    """A model whose friction has no directions: mujoco_warp and MuJoCo turn a steep capsule's pyramid differently."""
    model = worlds.model_of(id)
    model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    return model


def place_of(id: str, data: Any) -> float:
    """Where Gymnasium sees its robot before a move: of the last evaluation, not of its position."""
    where = {"warp/ant": data.xpos[1], "warp/humanoid": data.subtree_com[0]}
    return float(where.get(id, data.qpos)[0])


def rules_of(id: str) -> Rules:
    return robots.ROBOTS[id](torch).rules


def state_of(id: str, rows: list[dict[str, Any]]) -> RulesState:
    names = ("qpos", "qvel", "qacc_warmstart", "place")
    state = {name: torch.tensor(np.array([row[name] for row in rows]), dtype=torch.float32) for name in names}
    return state | {"shown": torch.zeros(len(rows), 1), "step": torch.zeros(len(rows), dtype=torch.int64)}


@pytest.mark.parametrize("id", THEIRS)
def test_a_move_is_gymnasiums(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 40 states of its own games the same control leads to the same observation, reward and end, within 1e-3."""
    env: Any = gymnasium.make(THEIRS[id]).unwrapped
    if id == "warp/ant":
        monkeypatch.setattr(robots, "model_of", elliptic)
        env.model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    rules, rng, rows = rules_of(id), np.random.default_rng(1), []
    high = env.action_space.high
    env.reset(seed=0)
    while len(rows) < N:
        over = False
        for _ in range(int(rng.integers(1, 12))):
            over = over or env.step((rng.uniform(-1, 1, len(high)) * high).astype(np.float32))[2]
        data, action = env.data, rng.uniform(-1, 1, len(high)).astype(np.float32)
        row = {name: getattr(data, name).copy() for name in ("qpos", "qvel", "qacc_warmstart")}
        row["place"] = place_of(id, data)
        seen, paid, ended, *_ = env.step(high * action)
        rows.append(row | {"action": action, "seen": seen, "paid": paid, "over": ended, "contacts": data.ncon})
        if over or ended:
            env.reset(seed=len(rows))
    action = torch.tensor(np.array([row["action"] for row in rows]))
    following, reward, discount, truncated = rules.move(state_of(id, rows), action, torch.zeros(N, 0))
    seen = np.array([row["seen"] for row in rows])
    assert np.allclose(rules.show(following).numpy(), seen, rtol=1e-3, atol=1e-3)
    assert np.allclose(reward.numpy(), [row["paid"] for row in rows], rtol=1e-3, atol=1e-3)
    assert np.array_equal(discount.numpy() == 0, [row["over"] for row in rows]) and not truncated.any()
    assert sum(row["contacts"] > 0 for row in rows) >= 5  # feet on the floor are part of it
    assert id == "warp/half_cheetah" or 0 < sum(row["over"] for row in rows) < N


@pytest.mark.parametrize("id", THEIRS)
def test_an_episode_begins_as_gymnasiums(id: str) -> None:
    """The first observation of a position and velocity is its own; noise has its bounds or its deviation."""
    env: Any = gymnasium.make(THEIRS[id]).unwrapped
    rules, rng = rules_of(id), np.random.default_rng(2)
    u = torch.tensor(rng.random((500, rules.begin_uniforms)))
    rules.move(rules.begin(u), torch.ones(500, *rules.spec.actions.shape), torch.zeros(500, 0))
    state = rules.begin(u)  # nothing of the move is left
    for k in range(3):
        env.reset()
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(state["qpos"][k].double().numpy(), state["qvel"][k].double().numpy())
        assert np.allclose(rules.show(state)[k].numpy(), env._get_obs(), atol=1e-5)
        assert float(state["place"][k]) == pytest.approx(place_of(id, env.data), abs=1e-6)
    noise = 0.01 if id == "warp/humanoid" else 0.1
    moved = state["qpos"] - torch.tensor(env.init_qpos, dtype=torch.float32)
    assert float(moved.abs().max()) <= noise * 1.001 and float(moved.std()) == pytest.approx(noise / 3**0.5, rel=0.05)
    deviation = noise / 3**0.5 if id == "warp/humanoid" else noise
    assert float(state["qvel"].std()) == pytest.approx(deviation, rel=0.05)
    assert (float(state["qvel"].abs().max()) <= noise) == (id == "warp/humanoid")


@pytest.mark.parametrize("id", THEIRS)
def test_a_world_goes_on_alike_in_any_batch(id: str) -> None:
    """Bit by bit: alone, among others, in another order, and with NumPy; what was handed out is not written into."""
    rules, rng = rules_of(id), np.random.default_rng(3)
    u = rng.random((6, rules.begin_uniforms))
    state = rules.begin(torch.tensor(u))
    moves = torch.tensor(rng.uniform(-1, 1, (4, 6, *rules.spec.actions.shape)), dtype=torch.float32)
    nothing = torch.zeros(6, 0)
    walked, states = state, [state]
    kept = {name: x.clone() for name, x in state.items()}
    for action in moves:
        walked, *_ = rules.move(walked, action, nothing)
        states.append(walked)
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    some = torch.tensor([4, 1, 5])
    alone = {name: x[some] for name, x in state.items()}
    host = robots.ROBOTS[id](np).rules
    arrays = host.begin(u)
    for k, action in enumerate(moves):
        alone, *_ = rules.move(alone, action[some], nothing[some])
        arrays, reward, discount, truncated = host.move(arrays, action.numpy(), nothing.numpy())
        for name, x in states[k + 1].items():
            assert torch.equal(x[some], alone[name]), (name, k)
            assert np.array_equal(x.numpy(), arrays[name]), (name, k)
        assert {x.dtype for x in (reward, discount)} == {np.dtype("float32")} and truncated.dtype == bool


def test_who_falls_ends_and_a_limit_truncates() -> None:
    rules = rules_of("warp/humanoid")
    state, rng, ended = rules.begin(torch.rand(8, rules.begin_uniforms)), np.random.default_rng(4), torch.zeros(8) > 0
    for _ in range(60):
        action = torch.tensor(rng.uniform(-1, 1, (8, 17)), dtype=torch.float32)
        state, reward, discount, truncated = rules.move(state, action, torch.zeros(8, 0))
        low = (state["qpos"][:, 2] <= 1.0) | (state["qpos"][:, 2] >= 2.0)
        assert torch.equal(discount == 0, low) and not truncated.any()
        assert (reward[low & ~ended] < 4).all()
        ended = ended | low
    assert ended.all()
    rules = robots.ROBOTS["warp/half_cheetah"](torch, limit=2).rules
    state = rules.begin(torch.rand(2, rules.begin_uniforms))
    for last in (False, True):
        state, _, discount, truncated = rules.move(state, torch.zeros(2, 6), torch.zeros(2, 0))
        assert truncated.all() == last and (discount == 1).all()


@pytest.mark.parametrize("id", THEIRS)
def test_a_world_that_breaks_ends_and_leaves_nothing_behind(id: str) -> None:
    """Its reward is no number, the others go on as they would, and who comes after it does, too."""
    rules = rules_of(id)
    generator = torch.Generator().manual_seed(0)
    fresh, nothing = rules.begin(torch.rand(4, rules.begin_uniforms, generator=generator)), torch.zeros(4, 0)
    state = fresh
    for _ in range(9):  # until some touch the floor
        action = 2 * torch.rand(4, *rules.spec.actions.shape, generator=generator) - 1
        state, *_ = rules.move(state, action, nothing)
    sound, *_ = rules.move(state, action, nothing)
    risen, *_ = rules.move(fresh, action, nothing)  # fewer rows of constraints than before
    for name, entry, value in (("qvel", -1, torch.nan), ("qpos", -1, torch.nan), ("qpos", 0, 1e30), ("qpos", 4, 1e30)):
        broken = {name: x.clone() for name, x in state.items()}
        broken[name][1:3, entry] = value
        after, reward, discount, _ = rules.move(broken, action, nothing)
        assert discount[1:3].tolist() == [0, 0] and reward[1:3].isnan().all(), (name, entry, value)
        again, *_ = rules.move(fresh, action, nothing)
        for kept, x in sound.items():
            assert torch.equal(after[kept][[0, 3]], x[[0, 3]]) and torch.equal(again[kept], risen[kept]), (name, entry)


def test_a_policy_for_gymnasiums_robot_fits_ours() -> None:
    for id, theirs in THEIRS.items():
        assert replace(describe(id, {}), id=theirs) == describe(theirs, {})


def test_the_ordinary_sampler_has_them_too() -> None:
    """Columns end at their own times, so that batches of all sizes are made."""
    env = make("warp/half_cheetah", {"limit": 3}, 4)
    env.reset(np.arange(4))
    rng, ended = np.random.default_rng(5), 0
    for _ in range(8):
        env.send(rng.uniform(-1, 1, (4, 6)).astype(np.float32))
        ended += int(env.recv().ended.sum())
    assert ended == 8
    env.close()


def test_beside_a_policy_columns_go_on_alike_on_other_ranks() -> None:
    """Fragments of five columns, bit by bit those of three and two that go on from their state."""
    columns, place = np.arange(5, dtype=np.int32), ("warp/half_cheetah", {"limit": 6})
    one, tree = sampler(*place, columns)
    fragments(one, tree, 1)
    state = merged([chosen(merged([one.state()]), [k]) for k in (4, 1, 0, 3, 2)])
    expected = fragments(one, tree, 2)
    assert np.isfinite(expected[0]["episode_return"]).sum() >= 10
    for part in (columns[:3], columns[3:]):
        other, narrow = sampler(*place, part)
        other.load(state)
        for whole, again in zip(expected, fragments(other, narrow, 2), strict=True):
            for name in ("observation", "first", "action", "reward", "discount", "episode_return", "extras/u"):
                assert again[name].tobytes() == whole[name][:, part].tobytes(), name


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadEnvironment, match=r"limit = 0 is refused"):
        describe("warp/ant", {"limit": 0})
    with pytest.raises(BadEnvironment, match=r"warp/spider is not a built-in environment.*warp/ant"):
        describe("warp/spider", {})
    found = importlib.util.find_spec
    monkeypatch.setattr(worlds, "find_spec", lambda name: None if name == "mujoco_warp" else found(name))
    with pytest.raises(BadEnvironment, match=r"warp/ant needs mujoco_warp; pip install 'hpc-rl\[warp\]'"):
        describe("warp/ant", {})


def test_batches_of_many_sizes_are_not_all_kept() -> None:
    held = worlds.Worlds(worlds.model_of("warp/half_cheetah"), 1, ())
    first: Array | None = None
    for size in [*range(1, worlds.SIZES + 4), 1]:
        carried = {"qpos": torch.zeros(size, 9), "qvel": torch.ones(size, 9), "qacc_warmstart": torch.zeros(size, 9)}
        moved = held.after(carried, torch.zeros(size, 6))["qvel"].numpy()
        first = moved[:1] if first is None else first
        assert np.array_equal(moved, np.repeat(first, size, 0)) and len(held.batches) <= worlds.SIZES
