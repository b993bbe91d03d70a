"""One job, several samplers: the same trajectories for a fixed seed and fixed weights.

Mutations seen to fail: noise drawn per lane instead of per column; the second lane numbered from 0; a lane that takes
the other's answer; the last row of a fragment not looked at; of a column whose episode is not repeated the carry, the
reward, the return or the first flag kept, every lost column named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpc_rl.envs.make import make
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Tree
from tests.contract.batches import WHOLE, config_of, policy_of

COLUMNS, STEPS, FRAGMENTS = 6, 9, 4
PLACES: list[tuple[str, dict[str, Any]]] = [
    ("toy/counter", {}),
    ("toy/chain", {}),
    ("toy/catch", {"pixels": True, "stack": 3}),
    ("CartPole-v1", {"max_episode_steps": 20}),
]


def vector(id: str, arguments: dict[str, Any], lanes: int) -> tuple[Vector, Tree]:
    lane_list = []
    for columns in np.array_split(np.arange(COLUMNS), lanes):
        environment = make(id, arguments, len(columns))
        policy = policy_of("ppo", environment.spec, config_of("ppo", **WHOLE))
        lane = Lane(environment, policy, columns, streams(3, "act", columns.tolist(), 0))
        lane.start(episode_seeds(3, "episode", columns.tolist(), 0))
        lane_list.append(lane)
    schema = trajectory_schema(environment.spec, policy.extras, policy.carry, policy.fragment_noise)
    return Vector(lane_list, Timings()), allocate(schema, STEPS, COLUMNS, environment.spec.stack)


def fragments(sampler: Vector, tree: Tree) -> list[Tree]:
    trees = []
    for version in range(FRAGMENTS):
        sampler.collect(tree, lambda: version)  # noqa: B023  # called before the next round
        trees.append({name: x.copy() for name, x in tree.items()})
    return trees


def same(one: Tree, other: Tree) -> None:
    """Bitwise, but for what a policy computes: another batch size may round its last digit differently."""
    assert one.keys() == other.keys()
    assert "episode_success" in one and np.isnan(one["episode_success"][np.isnan(one["episode_return"])]).all()
    for name, x in one.items():
        if name.startswith(("extras/", "carry/")):
            assert np.allclose(x, other[name], atol=1e-6), name
        else:
            assert x.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize(("id", "arguments"), PLACES, ids=[id for id, _ in PLACES])
@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_nothing(id: str, arguments: dict[str, Any], lanes: int) -> None:
    expected, parts = fragments(*vector(id, arguments, 1)), fragments(*vector(id, arguments, lanes))
    assert any(np.isfinite(tree["episode_return"]).any() for tree in expected), "no episode ended"
    for one, other in zip(expected, parts, strict=True):
        same(one, other)


@pytest.mark.parametrize(("id", "arguments"), PLACES[1::2], ids=[id for id, _ in PLACES[1::2]])
def test_a_state_goes_on_in_other_lanes(id: str, arguments: dict[str, Any]) -> None:
    sampler, tree = vector(id, arguments, 1)
    before = fragments(sampler, tree)
    state = sampler.state()
    expected = fragments(sampler, tree)
    halves, tree = vector(id, arguments, 2)
    halves.load(state)
    for one, other in zip(expected, fragments(halves, tree), strict=True):
        same(one, other)
    assert before[-1]["start"].max() < expected[0]["start"].min() + STEPS


def test_an_episode_that_is_not_repeated_begins_anew_and_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    sampler, tree = vector("CartPole-v1", {}, 1)
    fragments(sampler, tree)
    state = sampler.state()
    playing = [k for k in range(COLUMNS) if not state["environment"]["ended"][k]]
    lost, kept = playing[1:3], playing[0]
    state["environment"]["shown"] = state["environment"]["shown"].clone()
    state["environment"]["shown"][lost] += 1
    expected = fragments(sampler, tree)[0]
    other, tree = vector("CartPole-v1", {}, 1)
    other.load(state)
    said = capsys.readouterr().out.splitlines()
    steps = int(state["steps"][lost[0]])
    assert len(said) == 1 and said[0].startswith(f"warning: CartPole-v1, column {lost[0]}, env step {steps}: the ")
    assert "; a new episode begins there, and in 1 more columns, so this run differs" in said[0]
    lane = other.lanes[0]
    assert lane.first[lost].all() and not lane.reward[lost].any() and not lane.running_length[lost].any()
    assert lane.running_return[lost].sum() == 0 < lane.running_return[kept]
    assert all((lane.carry[name][lost] == 0).all() and lane.carry[name][kept].any() for name in lane.carry)
    new = fragments(other, tree)[0]
    assert new["first"][0, lost].all() and not (new["observation"][0, lost] == expected["observation"][0, lost]).any()
    assert new["start"].tolist() == expected["start"].tolist()
    assert new["observation"][:, kept].tobytes() == expected["observation"][:, kept].tobytes()


def test_alternating_acts_for_one_half_while_the_other_steps() -> None:
    """The order of calls: the second half is sent its action before the first half's answer is waited for."""
    sampler, tree = vector("toy/counter", {}, 2)
    calls: list[str] = []
    for k, lane in enumerate(sampler.lanes):
        send, recv = lane.environment.send, lane.environment.recv

        def sent(action: Any, k: int = k, send: Any = send) -> None:
            calls.append(f"send {k}")
            send(action)

        def received(k: int = k, recv: Any = recv) -> Any:
            calls.append(f"recv {k}")
            return recv()

        lane.environment.send, lane.environment.recv = sent, received  # type: ignore[method-assign]
    sampler.collect(tree, lambda: 0)
    assert calls[:8] == ["send 0", "send 1", "recv 0", "send 0", "recv 1", "send 1", "recv 0", "send 0"]
    assert calls[-2:] == ["recv 0", "recv 1"] and len(calls) == 4 * STEPS
