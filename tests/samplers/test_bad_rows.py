"""NaN and infinite numbers from an environment: recorded as they came, named once a column, counted, never carried on.

Mutations seen to fail: the policy acts on what came; the raw reward in the filtered return, in a game's return or in
``state``; row 0 of a fragment cleaned (it must be row T of the one before); every bad row printed; env steps of the
moves lost; after a restart a count that begins at 0, a row that is counted again, one of a new episode that is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.envs.base import Resumed
from hpc_rl.envs.make import make
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.formulas.returns import gae
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.columns import merged
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage import checkpoint
from hpc_rl.types import Array, Tree
from tests.contract.batches import WHOLE, config_of, policy_of
from tests.contract.seats import run_job
from tests.contract.test_witness import table_of

COLUMNS, STEPS = 3, 8
BAD = {(4, 1): ("reward", np.inf), (6, 1): ("reward", np.nan), (7, 2): ("observation", np.nan)}  # (move, column)


class Broken:
    """An environment whose answers are broken at the moves that BAD lists."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.spec, self.columns, self.move = inner, inner.spec, inner.columns, 0

    def recv(self) -> Any:
        moves = self.inner.recv()
        for (move, column), (name, value) in BAD.items():
            if move == self.move:
                getattr(moves, name)[column] = value
        self.move += 1
        return moves

    def load(self, state: Any) -> Resumed:
        """Column 1 begins a new episode. It and column 2 show a row that is not finite: there the state's last one."""
        observation = self.inner.load(state).observation
        observation[1:] = np.nan
        return Resumed(observation, np.array(["", "it did not repeat itself", ""]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def collected(rounds: int) -> tuple[Vector, list[Tree], list[Array]]:
    """Fragments, and the observations that the policy acted on."""
    environment: Any = Broken(make("toy/counter", {}, COLUMNS))
    policy = policy_of("ppo", environment.spec, config_of("ppo", **WHOLE))
    acted, act = [], policy.act

    def watched(step: Any, *arguments: Any) -> Any:
        acted.append(step.observation.numpy().copy())
        return act(step, *arguments)

    policy.act = watched
    columns = range(COLUMNS)
    lane = Lane(environment, policy, np.array(columns), streams(3, "act", columns, 0))
    lane.start(episode_seeds(3, "episode", columns, 0))
    sampler, trees = Vector([lane], Timings()), []
    for version in range(rounds):
        tree = allocate(
            trajectory_schema(environment.spec, policy.extras, policy.carry, policy.fragment_noise), STEPS, COLUMNS, 1
        )
        sampler.collect(tree, lambda: version)  # noqa: B023  # called before the next round
        trees.append(tree)
    return sampler, trees, acted


def test_rows_are_recorded_as_they_came_and_carried_on_as_zeros(capsys: pytest.CaptureFixture[str]) -> None:
    sampler, (one, two), acted = collected(2)
    assert np.isinf(one["reward"][4, 1]) and np.isnan(one["reward"][6, 1])
    assert np.isnan(one["observation"][STEPS, 2]).all() and np.isnan(two["observation"][0, 2]).all()
    assert all(np.isfinite(x).all() for x in acted) and (acted[STEPS][2] == 0).all()
    for tree in (one, two):
        for name, x in tree.items():
            if name.startswith(("extras/", "carry/")):
                assert np.isfinite(x).all(), name
    ends = np.flatnonzero(one["episode_length"][:, 1])
    assert np.isfinite(one["episode_return"][ends, 1]).all()
    assert (two["start"] == (~one["first"][1:]).sum(0)).all(), "a bad move is an env step"
    state = sampler.state()
    assert all(np.isfinite(np.asarray(state[name])).all() for name in ("reward", "running_return"))
    assert sampler.figures() == {"bad_rows": 3.0}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == 2, "one for each column"
    steps = [int((~one["first"][1 : t + 1, k]).sum()) for t, k in ((4, 1), (7, 2))]
    assert f"toy/counter, column 1, env step {steps[0]}: the reward is inf" in lines[0]
    size = one["observation"][0, 2].size
    place = f"column 2, env step {steps[1]}: {size} of {size} numbers of the observation are not finite, the first at"
    assert place in lines[1]


def test_a_resumed_run_goes_on_counting() -> None:
    """Rows from before once, those of a new episode as they come, those of episodes opened for nothing never."""
    state = collected(1)[0].state()
    resumed = collected(0)[0]
    resumed.lanes[0].bad_rows.counts += 10
    resumed.load(merged([state]))
    assert resumed.lanes[0].bad_rows.counts.tolist() == [0, 2 + 1, 1]
    unsaved = collected(0)[0]
    unsaved.lanes[0].bad_rows.counts += 10
    unsaved.load(merged([state | {"environment": None}]))
    assert unsaved.lanes[0].bad_rows.counts.tolist() == [10, 12, 11]


def test_a_fragment_of_bad_rows_cuts_its_recursions() -> None:
    """Advantages against the paper's recursion, written out: cut before each missing number, and zero on it."""
    _, trees, _ = collected(2)
    for tree in trees:
        batch = trajectory([tree], make("toy/counter", {}, COLUMNS).spec)
        value = torch.linspace(-1, 2, (STEPS + 1) * COLUMNS).reshape(STEPS + 1, COLUMNS)
        advantages = gae(batch.reward, 0.9 * batch.discount, value, batch.valid.float(), 0.8)
        for k in range(COLUMNS):
            following = 0.0
            for t in range(STEPS - 1, -1, -1):
                rows = tree["observation"][t : t + 2, k]
                finite = np.isfinite(tree["reward"][t, k]) and np.isfinite(rows).all() and not tree["first"][t + 1, k]
                gamma = 0.9 * float(tree["discount"][t, k])
                delta = float(tree["reward"][t, k]) + gamma * float(value[t + 1, k]) - float(value[t, k])
                following = delta + gamma * 0.8 * following if finite else 0.0
                assert float(advantages[t, k]) == pytest.approx(following, abs=1e-5), (t, k)


@pytest.mark.parametrize(
    ("name", "topology"), [("ppo", "allreduce"), ("a2c", "parameter_server"), ("impala", "actor_learner")]
)
def test_a_run_with_bad_rows_ends_well(
    name: str, topology: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moves before the final checkpoint are bad as well: it is written all the same."""
    plain = RulesEnvironment.recv

    def broken(self: Any) -> Any:
        moves = plain(self)
        moves.reward[0] = np.inf
        return moves

    monkeypatch.setattr(RulesEnvironment, "recv", broken)
    table = table_of(name, topology, 2, env_steps=300)
    if name == "ppo":
        table["ppo"] |= {"normalize_reward": True, "normalize_observation": True}
    job_run = run_job(table, tmp_path / "run")
    assert json.loads(job_run.run.state_file.read_text())["state"] == "done"
    state, _ = checkpoint.load(sorted(job_run.run.checkpoints.glob("0*.h5"))[-1])
    assert torch.isfinite(torch.as_tensor(state["weights"])).all()
    lines = [json.loads(p.read_text().splitlines()[-1]) for p in job_run.run.metrics.glob("*.jsonl")]
    assert max(line.get("bad_rows", 0) for line in lines) > 50
    assert all(not line.get("dropped_steps") for line in lines)
