"""PILCO's roll-out against particles and differences, its data and plan; one result on every layout, to the bit.

Mutations seen to fail: the noise of observations left out of what the controller sees; the cross-covariance added once;
σ_n² for σ_n²/2; rows in the order of ranks; the move after an episode's end as data; actions not cut; the first episode
planned for; a plan that goes on behind its horizon; a restart drawn by rank; a loss that is no number taken; a
search that its line search ended left so; one evaluation too many.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl import job as jobs
from hpc_rl.algorithms.pilco import Config, Learner, fitted, goal, policy
from hpc_rl.envs.built_in import TOYS
from hpc_rl.experience import Unsuited
from hpc_rl.formulas import gaussian_process as gp
from hpc_rl.formulas.moment_matching import features, squashed
from hpc_rl.formulas.process_moments import prediction
from hpc_rl.formulas.rollouts import Dynamics, mean_cost, predicted
from hpc_rl.nets.controllers import RadialBasis
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.bfgs import minimum, with_gradient
from hpc_rl.optim.group import Group
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Actions, Spec, Step, Trajectory

SPEC = Spec("rows", (2,), "float32", Actions("box", (1,), (-1.0,), (1.0,)))
CONFIG = Config(angles=(1,), target=(0.0, 3.0), horizon=4, centres=5, evaluations=4, model_evaluations=6)


def pendulum_data(points: int = 40) -> tuple[Tensor, Tensor]:
    """Inputs (speed, sin, cos, action) and differences of a smooth map."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(points, 2, generator=generator, dtype=torch.float64)
    action = 2 * torch.rand(points, 1, generator=generator, dtype=torch.float64) - 1
    change = torch.cat([0.5 * action - 0.8 * state[:, 1:].sin(), 0.1 * state[:, :1] + 0.05 * action], 1)
    noise = 0.02 * torch.randn(points, 2, generator=generator, dtype=torch.float64)
    return torch.cat([features(state, (1,)), action], 1), change + noise


def dynamics(noise: float = 0.01) -> Dynamics:
    x, y = pendulum_data()
    theta = [gp.first_guess(x, y[:, e]) for e in range(2)]
    return Dynamics(gp.posterior(theta, x, y), (1,), torch.full((2,), noise, dtype=torch.float64))


CONTROLLER = RadialBasis(3, 1, 5)
FIRST_ROW = CONTROLLER.start(pendulum_data()[0][:, :3], torch.zeros(3).double(), torch.Generator().manual_seed(3))
ROW = 3 * FIRST_ROW


def test_a_move_of_a_gaussian_is_that_of_particles() -> None:
    mean = torch.tensor([0.3, -0.4]).double()
    covariance = torch.tensor([[0.04, 0.01], [0.01, 0.03]]).double()
    model = dynamics(noise=0.05)
    row = torch.cat([FIRST_ROW[:15], 10 * FIRST_ROW[15:20], FIRST_ROW[20:]])  # its weights: noise has to matter
    state = model.after(model.start(mean, covariance), CONTROLLER.control(row))
    generator, n = torch.Generator().manual_seed(1), 200_000
    normal = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    x = mean + normal[:, :2] @ torch.linalg.cholesky(covariance).T
    seen = x + 0.05**0.5 * normal[:, 2:]
    u = squashed(CONTROLLER.output(row, features(seen, (1,))))
    inputs = torch.cat([features(x, (1,)), u], 1)
    mean_change = torch.cat([prediction(model.model, part) for part in inputs.split(10_000)])
    own = []
    for e in range(2):
        row = torch.cat([model.model.log_length[e], model.model.log_signal[e : e + 1], torch.zeros(1).double()])
        k = gp.kernel(row, inputs[:20_000], model.model.inputs[e])
        assert model.model.inverse is not None
        own.append(((2 * row[-2]).exp() - ((k @ model.model.inverse[e]) * k).sum(1)).mean())
    after = x + mean_change
    assert torch.allclose(state.mean, after.mean(0), atol=0.002)
    assert torch.allclose(state.covariance, torch.cov(after.T) + torch.diag(torch.stack(own)), rtol=0.04, atol=0.002)


def test_the_gradient_through_the_horizon_is_that_of_differences() -> None:
    model, aim = dynamics(), goal(CONFIG, SPEC)
    start = model.start(torch.zeros(2).double(), 0.01 * torch.eye(2).double())

    def loss(row: Tensor) -> Tensor:
        return mean_cost(aim, predicted(model, CONTROLLER.control(row), start, 6))

    assert torch.autograd.gradcheck(loss, (ROW.clone().requires_grad_(),), rtol=1e-4)


@pytest.mark.parametrize("job", ["pilco_pendulum", "pilco_cartpole"])
def test_the_cost_of_a_job_is_that_of_its_environment(job: str) -> None:
    table = jobs.load(job)
    rules = TOYS[table.environment.id](np).rules
    config = replace(Config(**dict(table.method)), width=0.5 if job == "pilco_pendulum" else 0.25)
    size = rules.spec.observation[0]
    u = np.random.default_rng(0).random((500, 4 * size))
    state = {**rules.begin(u), "state": np.random.default_rng(1).normal(size=(500, size)) * 2}
    state, reward, _, _ = rules.move(state, np.zeros((500, 1)), u[:, : 2 * size])
    cost = goal(config, rules.spec).cost(torch.from_numpy(state["state"]))
    assert np.allclose(1 - cost.numpy(), reward, atol=1e-9)


def batch_of(seed: int, columns: int = 4, moves: int = 6) -> Trajectory:
    """Episodes of 3 to 6 moves, one for each column."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, moves + 1, columns)
    first = torch.from_numpy(np.arange(moves + 1)[:, None] > lengths)
    first[0] = True
    extras = {name: torch.zeros(moves, columns, 2) for name in ("predicted_mean", "predicted_std")}
    zeros = torch.zeros(moves, columns)
    return Trajectory(
        observation=torch.tensor(rng.normal(size=(moves + 1, columns, 2)), dtype=torch.float32),
        first=first,
        action=torch.tensor(rng.uniform(-2, 2, (moves, columns, 1)), dtype=torch.float32),
        reward=zeros,
        discount=zeros + 1,
        extras=extras,
        carry={"move": torch.zeros(columns)},
        version=zeros.long(),
        finite=torch.ones(moves, columns, dtype=torch.bool),
        column=torch.tensor(rng.permutation(columns), dtype=torch.int32),
        start=torch.tensor(rng.integers(0, 50, columns)),
        chance=torch.ones(columns),
        noise=torch.zeros(columns, 0),
    )


def learner_of(config: Config = CONFIG, group: Group | None = None) -> Learner:
    torch.manual_seed(0)
    return Learner(config, SPEC, None, policy(config, SPEC, None), group or Alone())


def test_moves_become_data_in_the_order_of_columns() -> None:
    learner, batch = learner_of(replace(CONFIG, random_episodes=99)), batch_of(1)
    figures = learner.update({"items": batch}, 0.0).metrics
    expected = []
    for k in batch.column.argsort().tolist():
        for t in range(6):
            if not bool(batch.first[t + 1, k]):
                x, u, after = batch.observation[t, k], batch.action[t, k].clamp(-1, 1), batch.observation[t + 1, k]
                expected.append(torch.cat([x, u, after]).double())
    assert torch.equal(learner.data.rows, torch.stack(expected)) and figures["moves"] == len(expected)
    assert torch.equal(learner.data.first, batch.observation[0][batch.column.argsort()].double())
    assert figures["episodes"] == 4 and "predicted_cost" not in figures and learner.policy.net.ready.tolist() == [0]


def test_the_share_within_two_deviations() -> None:
    learner, batch = learner_of(replace(CONFIG, random_episodes=99)), batch_of(2)
    away = torch.tensor([1.9, 2.1])
    batch.extras["predicted_std"][:] = 0.5
    batch.extras["predicted_mean"][:] = batch.observation[:-1] + 0.5 * away
    assert learner.update({"items": batch}, 0.0).metrics["within_two_std"] == 0.5


@pytest.mark.parametrize(
    "changes", [{"restarts": 3}, {"exact": 10, "inducing": 6}, {"controller": "linear"}, {"filtered": True}]
)
def test_every_layout_has_the_same_controller_to_the_bit(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)

    def rows(ranks: int) -> list[Tensor]:
        learners = [learner_of(config) for _ in range(ranks)]

        def rank(link: LocalLink) -> None:
            learner, own = learners[link.rank], slice(4 * link.rank // 2, 4 * (link.rank + 1) // 2)
            if ranks > 1:
                learner.group = AllReduce(Ports(link, Waiting(30.0)), range(ranks))
            for seed in (1, 2):
                batch = batch_of(seed)
                learner.update({"items": batch.columns(own) if ranks > 1 else batch}, 0.0)

        run_threads(ranks, rank, 60.0)
        return [learner.weights.data.clone() for learner in learners]

    (alone,) = rows(1)
    assert float(alone.abs().sum()) > 0
    for x in [*rows(2), *rows(3)]:  # the third has no columns
        assert torch.equal(x, alone)


def test_random_first_then_the_controller_with_its_plan() -> None:
    pilot = policy(CONFIG, SPEC, None)
    step = Step(torch.randn(3, 2), torch.tensor([True, False, False]), torch.zeros(3))
    noise, carry = torch.tensor([[0.0], [0.5], [1.0]]), {"move": torch.tensor([7.0, 1.0, 4.0])}
    assert pilot.act(step, carry, torch.ones(3), noise).action[:, 0].tolist() == [-1.0, 0.0, 1.0]
    with torch.no_grad():
        pilot.net.coefficients.copy_(ROW)
        pilot.net.plan.copy_(torch.arange(20.0).reshape(5, 2, 2))
        pilot.net.ready.fill_(1.0)
    act = pilot.act(step, carry, torch.ones(3), noise)
    expected = squashed(CONTROLLER.output(ROW.float().double(), features(step.observation.double(), (1,))))
    assert torch.allclose(act.action.double(), expected, atol=1e-6)
    assert act.carry["move"].tolist() == [0, 2, 5]
    assert act.extras["predicted_mean"].tolist() == [[0, 1], [8, 9], [0, 0]], "five is behind the horizon of four moves"
    assert act.extras["predicted_std"].tolist() == [[2, 3], [10, 11], [0, 0]]


def test_the_plan_is_what_the_model_predicts() -> None:
    learner = learner_of()
    figures = learner.update({"items": batch_of(3)}, 0.0).metrics
    net, mean = learner.policy.net, learner.data.first.mean(0)
    assert torch.allclose(net.plan[0, 0].double(), mean, atol=1e-6) and net.ready.tolist() == [1]
    assert learner.theta is not None
    noise = (2 * learner.theta[:, -2]).exp() / 2
    assert torch.allclose(net.plan[0, 1].double(), (0.01 + noise).sqrt(), atol=1e-6)
    assert figures["evaluations"] >= 4 and 0 < figures["predicted_cost"] < 1


REFUSED = [
    ({"angles": (2,)}, r"rows: angles = \[2\], and entries 0 to 1 are shown"),
    ({"target": (1.0,)}, "rows: target has 1 numbers, and 2 are shown"),
    ({"start": (1.0, 2.0, 3.0)}, "start has 3 numbers"),
    ({"start_std": (1.0, 2.0, 3.0)}, "start_std has 3 numbers"),
    ({"distance": ((1.0, 0.0),)}, "each row of distance needs 3 numbers"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsuited, match=words):
        policy(replace(CONFIG, **changes), SPEC, None)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(Unsuited, match="has discrete actions; use PPO"):
        policy(Config(), Spec("catch", (2,), "float32", Actions("discrete", (3,))), None)


def test_a_model_that_does_not_fit_is_named() -> None:
    x, y = pendulum_data()
    guesses = torch.stack([gp.first_guess(x, y[:, e]) for e in range(2)])
    assert fitted(replace(CONFIG, model_restarts=1), Alone(), x, y, guesses, 0).shape == (2, 7)
    guesses[1, 2] = 40.0
    with pytest.raises(Unsuited, match="the GP of entry 1 does not fit: its length-scale over input 2"):
        fitted(replace(CONFIG, model_restarts=1, model_evaluations=1), Alone(), x, y, guesses, 0)


def test_the_minimiser_begins_anew_where_its_line_search_ends() -> None:
    """Beside a wall: the first search stays at 80.5, where its direction leads into the wall."""

    def loss(x: Tensor) -> Tensor:
        walled: Tensor = (x[0] - 3).square() + 30 * (x[1] - x[0]).square() - 0 * (2.5 - x).log().sum()
        return walled

    start = torch.tensor([-5.0, 2.0], dtype=torch.float64)
    assert minimum(with_gradient(loss), start, 200, lambda: False).loss < 0.26  # 0.25 at the wall
    assert minimum(with_gradient(loss), start, 7, lambda: False).evaluations == 7


def test_the_minimiser_goes_back_from_where_there_is_no_loss() -> None:
    def loss(x: Tensor) -> Tensor:
        return (x - 3).square().sum() - 1e3 * (2.5 - x).log().sum() * 0  # NaN beyond 2.5

    best = minimum(with_gradient(loss), torch.zeros(2).double(), 30, lambda: False)
    assert best.loss < 9 and bool((best.point < 2.5).all()) and 1 < best.evaluations <= 30

    def singular(x: Tensor) -> Tensor:
        root: Tensor = torch.linalg.cholesky(torch.eye(2).double() - x[0])
        return root.sum()

    assert minimum(with_gradient(singular), torch.ones(1).double(), 5, lambda: False).loss == 1e12
