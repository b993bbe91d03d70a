"""FuN against a slow oracle: NumPy over whole trajectories with the ends of episodes, fragments cut anywhere.

The oracle walks through one column after the other, row by row, with a counter for the dilated LSTM and lists of the
episode's states and goals; what the learner makes of fragments and their carries must equal it. The mistakes of public
code, each with the test that fails when it is made, are in `test_the_learner_sees_what_the_oracle_sees` (old goals,
one counter for all columns, a counter that advances in the bootstrap pass, a carry lost at a fragment's start),
`test_the_loss_is_the_papers` (r^I added at one step, a bootstrap value in other units), and
`test_a_random_goal_is_a_unit_vector` (an ε of 0, a goal of any length).

Mutations seen to fail: goals of t−c..t−1; a carry of goals, states or LSTMs lost; the manager's own goals in the place
of those emitted, or remembered so; r^I of the row before; r^I left out of the return, or added at one step; a
bootstrap value doubled; γ_w for γ_m; targets that are not known; the worker's advantage for the manager; random goals
of any length; ε cast to int; 1 − ‖mean goal‖.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.algorithms.fun import Config, FeudalPolicy, loss, played
from hpc_rl.experience import Unsuited
from hpc_rl.types import Trajectory
from tests.contract.batches import COLUMNS, SPECS, config_of, fed, learner_of, policy_of, sampled, step_of

C, R, D, K, H = 3, 4, 6, 5, 7
SMALL: dict[str, Any] = {
    "horizon": C, "dilation": R, "goal_size": D, "embedding": K, "lstm": H, "hidden": (9,), "random_goal": 0.3,
    "extrinsic": 0.4, "intrinsic": 0.7, "lambda_": 0.9, "manager_discount": 0.97, "worker_discount": 0.8,
}  # fmt: skip


def config(**changes: Any) -> Config:
    settings: Config = config_of("fun", **{**SMALL, **changes})
    return settings


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit(x: np.ndarray) -> np.ndarray:
    return x / max(float(np.linalg.norm(x)), 1e-12)


class Oracle:
    """One column, row by row; weights by the names of the network's parameters."""

    def __init__(self, policy: FeudalPolicy) -> None:
        self.w = {name: x.detach().double().numpy() for name, x in policy.net.named_parameters()}
        self.begin()

    def begin(self) -> None:
        self.cores = [(np.zeros(D), np.zeros(D)) for _ in range(R)]
        self.mine = (np.zeros(H), np.zeros(H))
        self.counter = 0
        self.states: list[np.ndarray] = []
        self.goals: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []

    def dense(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0))

    def lstm(self, name: str, x: np.ndarray, state: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        h, c = state
        i, f, g, o = np.split(self.dense(f"{name}.input", x) + self.w[f"{name}.hidden.weight"] @ h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def row(self, x: np.ndarray, opens: bool, emitted: np.ndarray | None) -> dict[str, np.ndarray]:
        """One row with the goal that was emitted, or with the manager's own where there is none."""
        if opens:
            self.begin()
        z = np.tanh(self.dense("torso.layers.0", x))
        self.states.append(np.maximum(self.dense("space", z), 0.0))
        turn = self.counter % R
        self.cores[turn] = self.lstm("manager.cell", self.states[-1], self.cores[turn])
        self.outputs.append(self.cores[turn][0])
        self.counter += 1
        pooled = np.sum(self.outputs[-C:], 0)
        own = unit(pooled)
        self.goals.append(own if emitted is None else emitted)
        back = range(1, min(C, len(self.states) - 1) + 1)
        cosines = [unit(self.states[-1] - self.states[-1 - i]) @ self.goals[-1 - i] for i in back]
        self.mine = self.lstm("worker", z, self.mine)
        w = self.w["embed.weight"] @ np.sum(self.goals[-C - 1 :], 0)
        logits = self.dense("actions", self.mine[0]).reshape(-1, K) @ w
        return {
            "state": self.states[-1], "goal": own, "logits": logits, "intrinsic": np.array(sum(cosines) / C),
            "manager_value": self.dense("manager_value", pooled)[0],
            "value": self.dense("worker_value", np.concatenate([self.mine[0], w]))[0],
        }  # fmt: skip


def fragments(cut: int, count: int, **changes: Any) -> tuple[FeudalPolicy, list[Trajectory]]:
    settings = config(unroll=cut, **changes)
    policy = policy_of("fun", sampled("fun", "toy/counter", 0, cut, settings)[0], settings)
    return policy, sampled("fun", "toy/counter", count, cut, settings)[1]


def seen_by_oracle(policy: FeudalPolicy, batches: list[Trajectory]) -> list[list[dict[str, np.ndarray]]]:
    """[T][b] of the whole trajectory, without each fragment's bootstrap row."""
    columns = [Oracle(policy) for _ in range(COLUMNS)]
    rows = []
    for batch in batches:
        for t in range(len(batch.reward)):
            row = []
            for k, oracle in enumerate(columns):
                x, emitted = batch.observation[t, k].double().numpy(), batch.extras["goal"][t, k].double().numpy()
                row.append(oracle.row(x, bool(batch.first[t, k]), emitted))
            rows.append(row)
    return rows


@pytest.mark.parametrize("cut", [3, 5, 8, 24])
def test_the_learner_sees_what_the_oracle_sees(cut: int) -> None:
    policy, batches = fragments(cut, 48 // cut)
    whole = seen_by_oracle(policy, batches)
    firsts = torch.cat([batch.first[:-1] for batch in batches])
    for number, batch in enumerate(batches):
        answers = played(policy.config, policy.net, batch)
        for t in range(cut):
            row = number * cut + t
            for k in range(COLUMNS):
                expected = whole[row][k]
                close = {"state": answers.managed.state, "goal": answers.managed.goal, "logits": answers.logits}
                close |= {"manager_value": answers.managed.value, "value": answers.value}
                for name, x in close.items():
                    assert np.allclose(x[t, k].detach(), expected[name], atol=1e-4), (name, row, k)
                if t > 0 and batch.valid[t - 1, k]:
                    actual = float(answers.intrinsic[t - 1, k])
                    assert actual == pytest.approx(float(expected["intrinsic"]), abs=5e-3), (
                        row,
                        k,
                    )  # of small differences
                if batch.valid[t, k]:
                    ends = [x for x in range(row + 1, len(firsts)) if firsts[x, k]]
                    target = min([row + C, *[x - 1 for x in ends]])
                    inside = target < (number + 1) * cut
                    if inside:
                        assert answers.known[t, k]
                        moved = whole[target][k]["state"] - expected["state"]
                        assert np.allclose(answers.transition[t, k], moved, atol=1e-4)
                    elif target > (number + 1) * cut:  # row T itself belongs to this fragment, too
                        assert not answers.known[t, k]


def test_goals_that_the_learner_computes_are_those_that_were_emitted() -> None:
    policy, batches = fragments(6, 8, random_goal=0.0)
    for batch in batches:
        assert torch.allclose(
            played(policy.config, policy.net, batch).managed.goal[:-1], batch.extras["goal"], atol=1e-6
        )


def test_the_fragment_behind_goes_on_where_this_one_ends() -> None:
    """The bootstrap pass changes nothing: its row comes again as row 0 of the next, with the same answers."""
    policy, batches = fragments(7, 6, random_goal=0.0)
    for before, after in pairwise(batches):
        one, other = (played(policy.config, policy.net, batch) for batch in (before, after))
        assert torch.allclose(one.managed.goal[-1], other.managed.goal[0], atol=1e-6)
        assert torch.allclose(one.value[-1], other.value[0], atol=1e-5)
        assert torch.allclose(one.managed.value[-1], other.managed.value[0], atol=1e-5)


# ---- loss -----------------------------------------------------------------------------------------------------------


def advantages(reward: Any, discount: Any, value: Any, valid: Any, lambda_: float) -> np.ndarray:
    out = np.zeros(reward.shape)
    for k in range(reward.shape[1]):
        following = 0.0
        for t in range(len(reward) - 1, -1, -1):
            error = reward[t, k] + discount[t, k] * value[t + 1, k] - value[t, k]
            following = valid[t, k] * (error + discount[t, k] * lambda_ * following)
            out[t, k] = following
    return out


def test_the_loss_is_the_papers() -> None:
    policy, batches = fragments(12, 3)
    settings, batch = policy.config, batches[1]
    rows = played(settings, policy.net, batch)
    reward = torch.randn_like(batch.reward)
    total, sums = loss(settings, rows, policy.head, batch, reward)
    w, r = batch.valid.double().numpy(), reward.double().numpy()
    cut, own, above = (x.detach().double().numpy() for x in (batch.discount, rows.value, rows.managed.value))
    mixed = 0.4 * r + 0.7 * rows.intrinsic.double().numpy()
    a_worker = advantages(mixed, 0.8 * cut, own, w, 0.9)
    a_manager = advantages(r, 0.97 * cut, above, w, 0.9)
    log_p = rows.logits[:-1].detach().double().log_softmax(-1).numpy()
    expected = dict.fromkeys(("policy", "value", "entropy", "manager", "manager_value"), 0.0)
    for t, k in zip(*np.nonzero(w), strict=True):
        expected["policy"] -= log_p[t, k, int(batch.action[t, k])] * a_worker[t, k]
        expected["entropy"] -= float((np.exp(log_p[t, k]) * log_p[t, k]).sum())
        expected["value"] += 0.5 * a_worker[t, k] ** 2
        expected["manager_value"] += 0.5 * a_manager[t, k] ** 2
        if rows.known[t, k]:
            moved, goal = rows.transition[t, k].double().numpy(), rows.managed.goal[t, k].detach().double().numpy()
            expected["manager"] -= a_manager[t, k] * float(unit(moved) @ goal)
    named = dict(zip(("policy", "value", "entropy", "manager", "manager_value"), map(float, sums), strict=False))
    assert named == pytest.approx(expected, rel=1e-4, abs=1e-4)
    whole = expected["policy"] + expected["manager"] + 0.5 * (expected["value"] + expected["manager_value"])
    assert float(total.detach()) == pytest.approx(whole - 0.01 * expected["entropy"], rel=1e-4)


MANAGERS = {"space", "manager", "manager_value"}


def touched(policy: FeudalPolicy, batch: Trajectory, part: str) -> set[str]:
    """Modules with a gradient of the worker's loss, or of the manager's."""
    settings = policy.config
    rows = played(settings, policy.net, batch)
    if part == "worker":  # the manager's terms without their gradients
        quiet = replace(rows.managed, goal=rows.managed.goal.detach(), value=rows.managed.value.detach())
        rows = replace(rows, managed=quiet)
    else:
        rows = replace(rows, logits=rows.logits.detach(), value=rows.value.detach())
    policy.net.zero_grad()
    loss(settings, rows, policy.head, batch, batch.reward)[0].backward()
    return {name.split(".")[0] for name, x in policy.net.named_parameters() if x.grad is not None and x.grad.any()}


def test_no_gradient_passes_between_worker_and_manager() -> None:
    policy, batches = fragments(12, 2)
    assert touched(policy, batches[1], "worker") == {"torso", "worker", "actions", "embed", "worker_value"}
    assert touched(policy, batches[1], "manager") == {"torso", *MANAGERS}


# ---- acting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_random_goal_is_a_unit_vector(share: float) -> None:
    n = 4000
    policy = policy_of("fun", SPECS["discrete"], config(random_goal=share))
    step, carry = step_of(SPECS["discrete"], n), policy.initial_carry(n)
    noise = torch.rand(n, policy.fragment_noise + policy.noise, generator=torch.Generator().manual_seed(3))
    own = policy.act(step, carry, torch.zeros(n), noise).extras["goal"]
    goals = policy.act(step, carry, torch.ones(n), noise).extras["goal"]
    assert torch.allclose(goals.norm(dim=-1), torch.ones(n), atol=1e-5)
    strays = (goals != own).any(-1)
    assert float(strays.float().mean()) == pytest.approx(share, abs=0.02)
    noise[:, policy.fragment_noise :] = 0.5  # what is new for each row
    later = policy.act(step_of(SPECS["discrete"], n, seed=1), carry, torch.ones(n), noise).extras["goal"]
    assert torch.equal(later[strays], goals[strays]), "it lasts a fragment"
    if share:
        assert float(goals[strays].mean(0).norm()) < 0.1, "in every direction"


def test_goals_that_do_not_fit_a_fragment_or_the_lstm_are_refused() -> None:
    for name in ("unroll", "dilation"):
        with pytest.raises(Unsuited, match=rf"fun\.horizon = 10 rows are more than fun\.{name} = 9; make"):
            policy_of("fun", SPECS["discrete"], config_of("fun", **{name: 9}))
    with pytest.raises(Unsuited, match="FuN needs discrete choices, and box has box actions; use"):
        policy_of("fun", SPECS["box"])


def test_metrics_tell_a_collapsed_manager() -> None:
    """‖mean goal‖ is 1 where all goals are alike."""
    spec, (batch,) = sampled("fun", "toy/counter", 1, config=config())
    learner = learner_of("fun", spec, config())
    assert 0 < learner.update(fed(learner, batch), 0.0).metrics["goal_mean"] < 1
    learner.policy.net.manager.cell.input.weight.data.zero_()
    learner.policy.net.manager.cell.hidden.weight.data.zero_()
    learner.policy.net.manager.cell.input.bias.data.fill_(1.0)
    metrics = learner.update(fed(learner, batch), 0.0).metrics
    assert metrics["goal_mean"] == pytest.approx(1.0, abs=1e-5) and -1 <= metrics["direction"] <= 1
