"""PILCO's filter and the roll-out of beliefs: against Bayes' rule in NumPy, particles, and filters that are simulated.

Mutations seen to fail: Kᵀ for K; K of S in place of V; the innovation's sign; Σ as it was before the observation; sines
that do not fade; Cov(x, u) or Cov(φ(x), u) of S in place of Σ; the controller on observations in the plan; H without I;
H for Hᵀ, in the plan and in the policy; H or m' of this row in place of the next one's; a belief that is not reset, is
moved from the observation, or is acted on beyond the plan; K and H changed over by the learner.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.algorithms.pilco import goal, policy
from hpc_rl.formulas.moment_matching import feature_moments, features, squashed, squashed_moments
from hpc_rl.formulas.process_moments import prediction, process_moments
from hpc_rl.formulas.rollouts import Dynamics, State, mean_cost, predicted
from hpc_rl.nets.controllers import Pilot
from hpc_rl.types import Step
from tests.algorithms.test_pilco import CONFIG, CONTROLLER, FIRST_ROW, SPEC, batch_of, dynamics, learner_of

FILTERED = replace(CONFIG, filtered=True)
ROW = torch.cat([FIRST_ROW[:15], 10 * FIRST_ROW[15:20], FIRST_ROW[20:]])  # its weights: noise has to matter
MEAN = torch.tensor([0.3, -0.4]).double()
KNOWN = torch.tensor([[0.03, 0.01], [0.01, 0.02]]).double()
UNSURE = torch.tensor([[0.02, -0.005], [-0.005, 0.03]]).double()
NOISE = torch.diag(torch.tensor([0.05, 0.02]).double())


def world(noise: Tensor = NOISE) -> Dynamics:
    return replace(dynamics(), noise=noise.diagonal(), filtered=True)


def state_of(model: Dynamics, unsure: Tensor = UNSURE) -> State:
    return model.start(MEAN, KNOWN + unsure)._replace(known=KNOWN)


def normal(generator: torch.Generator, count: int, covariance: Tensor) -> Tensor:
    drawn = torch.randn(count, len(covariance), generator=generator, dtype=torch.float64)
    return drawn @ torch.linalg.cholesky(covariance).T


def moved(model: Dynamics, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Particles [n, 2] one move later, of a function that is drawn for each of them."""
    inputs = torch.cat([features(x, (1,)), u], 1)
    after = x + torch.cat([prediction(model.model, part) for part in inputs.split(10_000)])
    assert model.model.inverse is not None
    for e, inverse in enumerate(model.model.inverse):
        scaled, signal = (x[e].exp() for x in (model.model.log_length, 2 * model.model.log_signal))
        squares = torch.cdist(inputs / scaled, model.model.inputs[e] / scaled).square()
        k = signal * (-0.5 * squares).exp()
        left = (signal - ((k @ inverse) * k).sum(1)).clamp(min=0)
        after[:, e] += left.sqrt() * torch.randn(len(x), generator=generator, dtype=torch.float64)
    return after


def between(x: Tensor, y: Tensor) -> Tensor:
    """Covariance of the columns of x and y."""
    return (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)


def test_a_move_of_a_belief_is_that_of_particles() -> None:
    model, generator, n = world(), torch.Generator().manual_seed(1), 200_000
    state = state_of(model)
    after = model.after(state, CONTROLLER.control(ROW))
    before = MEAN + normal(generator, n, KNOWN)
    x = before + normal(generator, n, UNSURE)
    z = x + normal(generator, n, NOISE)
    belief = before + (z - before) @ model.gain(state).T
    following = moved(model, x, squashed(CONTROLLER.output(ROW, features(belief, (1,)))), generator)
    assert torch.allclose(between(x - belief, belief), torch.zeros(2, 2).double(), atol=3e-4), "more could be known"
    assert torch.allclose(after.mean, following.mean(0), atol=0.002)
    assert torch.allclose(after.covariance, torch.cov(following.T), rtol=0.04, atol=0.002)
    known, link = torch.cov(belief.T), between(belief, following)
    assert torch.allclose(known @ after.led, link, rtol=0.04, atol=0.001)
    assert torch.allclose(after.known, link.T @ torch.linalg.solve(known, link), rtol=0.06, atol=0.001)


def test_a_move_is_that_of_the_joint_gaussian_of_belief_and_state() -> None:
    """(M, x) as one Gaussian of four entries, two of them angles, of which little is known."""
    model = world(torch.diag(torch.tensor([0.02, 0.5]).double()))
    unsure = torch.tensor([[0.02, -0.05], [-0.05, 0.4]]).double()
    state = state_of(model, unsure)
    after = model.after(state, CONTROLLER.control(ROW))
    known = KNOWN + unsure - torch.linalg.inv(torch.linalg.inv(unsure) + torch.diag(1 / model.noise))
    pair = torch.cat([torch.cat([known, known], 1), torch.cat([known, KNOWN + unsure], 1)])
    shown = feature_moments(MEAN.repeat(2), pair, (1, 3))
    of_m, of_x, cross = [0, 2, 3], [1, 4, 5], pair @ shown.gain
    output = CONTROLLER.control(ROW)(shown.mean[of_m], shown.covariance[of_m][:, of_m])
    action = squashed_moments(output.mean, output.covariance)
    gain = output.gain @ action.gain
    mixed = shown.covariance[of_x][:, of_m] @ gain
    inputs = torch.cat(
        [torch.cat([shown.covariance[of_x][:, of_x], mixed], 1), torch.cat([mixed.T, action.covariance], 1)]
    )
    mean, covariance, slope = process_moments(model.model, torch.cat([shown.mean[of_x], action.mean]), inputs)
    links = pair[:, 2:] + torch.cat([cross[:, of_x], cross[:, of_m] @ gain], 1) @ slope  # of M and x with x'
    assert torch.allclose(after.mean, MEAN + mean)
    assert torch.allclose(after.covariance, links[2:] + links[2:].T - pair[2:, 2:] + covariance)
    assert torch.allclose(known @ after.led, links[:2])
    assert torch.allclose(after.known, links[:2].T @ torch.linalg.solve(known, links[:2]))


def planned(horizon: int = 4) -> tuple[Dynamics, list[State], Pilot]:
    """A plan, and the policy that follows it."""
    model, pilot = world(), policy(replace(FILTERED, horizon=horizon), SPEC, None)
    states = predicted(model, CONTROLLER.control(ROW), model.start(MEAN, UNSURE), horizon)
    assert pilot.net.filter is not None
    with torch.no_grad():
        pilot.net.coefficients.copy_(ROW)
        pilot.net.plan[:, 0] = torch.stack([x.mean for x in states])
        pilot.net.filter.copy_(torch.stack([torch.stack([model.gain(x), x.led]) for x in states]))
        pilot.net.ready.fill_(1.0)
    return model, states, pilot


def test_simulated_filters_are_as_they_were_predicted() -> None:
    """Over four moves, in which the moments of sines and kernels are no longer exact: a tenth."""
    (model, states, pilot), generator, n = planned(), torch.Generator().manual_seed(2), 20_000
    x, carry = MEAN + normal(generator, n, UNSURE), pilot.initial_carry(n)
    errors = []
    for t, state in enumerate(states[:-1]):
        z = x + normal(generator, n, NOISE)
        assert t == 0 or torch.allclose(torch.cov(carry["belief"].double().T), state.known, rtol=0.12, atol=0.003)
        step = Step(z.float(), torch.full((n,), t == 0), torch.zeros(n))
        act = pilot.act(step, carry, torch.zeros(n), torch.zeros(n, 1))
        if t:
            errors.append(torch.cov((x - carry["belief"].double()).T))
            assert torch.allclose(errors[-1], state.covariance - state.known, rtol=0.12, atol=0.003)
        x, carry = moved(model, x, act.action.double(), generator), act.carry
    assert errors and torch.allclose(x.mean(0), states[-1].mean, atol=0.02)
    assert torch.allclose(torch.cov(x.T), states[-1].covariance, rtol=0.12, atol=0.005)


def test_the_filter_is_bayes_rule() -> None:
    """By precisions, (V⁻¹ + E⁻¹)⁻¹ (V⁻¹ m + E⁻¹ z), and moments of the joint Gaussian of belief and next state."""
    _, states, pilot = planned()
    z = torch.tensor([[0.5, -0.1], [-0.7, 0.9], [0.2, 0.3]])
    first, carried = torch.tensor([True, False, False]), torch.tensor([[9.0, 9.0], [0.4, -0.2], [0.1, 0.6]])
    carry = {"move": torch.tensor([7.0, 1.0, 4.0]), "belief": carried}
    act = pilot.act(Step(z, first, torch.zeros(3)), carry, torch.zeros(3), torch.zeros(3, 1))
    beliefs = []
    for row, t in ((0, 0), (1, 2)):
        before = states[t].mean.numpy() if row == 0 else carried[row].double().numpy()
        unsure = (states[t].covariance - states[t].known).numpy()
        prior, seen = np.linalg.inv(unsure), np.linalg.inv(NOISE.numpy())
        covariance = np.linalg.inv(prior + seen)
        beliefs.append(covariance @ (prior @ before + seen @ z[row].double().numpy()))
        known = states[t].covariance.numpy() - covariance
        link = known @ states[t + 1].led.numpy()
        assert np.allclose(link.T @ np.linalg.solve(known, link), states[t + 1].known.numpy(), atol=1e-9)
        following = states[t + 1].mean.numpy() + link.T @ np.linalg.solve(known, beliefs[-1] - states[t].mean.numpy())
        assert np.allclose(act.carry["belief"][row], following, atol=1e-5)
    rows = torch.stack([*(torch.from_numpy(x) for x in beliefs), z[2].double()])  # beyond the plan: what is observed
    expected = squashed(CONTROLLER.output(ROW.float().double(), features(rows, (1,))))
    assert torch.allclose(act.action.double(), expected, atol=1e-5)
    assert act.carry["move"].tolist() == [0, 2, 5]


def test_the_gradient_through_the_beliefs_is_that_of_differences() -> None:
    model, aim = world(), goal(CONFIG, SPEC)
    start = model.start(MEAN, UNSURE)

    def loss(row: Tensor) -> Tensor:
        return mean_cost(aim, predicted(model, CONTROLLER.control(row), start, 5))

    assert torch.autograd.gradcheck(loss, (ROW.clone().requires_grad_(),), rtol=1e-4)


@pytest.mark.parametrize(("noise", "share"), [(1e-9, 1.0), (1e9, 0.0)])
def test_what_is_exact_is_believed_and_what_is_noise_is_not(noise: float, share: float) -> None:
    model = world(noise * torch.eye(2).double())
    state = state_of(model)
    assert torch.allclose(model.gain(state), share * torch.eye(2).double(), atol=1e-6)
    (after,) = predicted(model, CONTROLLER.control(ROW), state, 1)[1:]
    if share:
        plain = replace(model, filtered=False).after(state, CONTROLLER.control(ROW))
        assert torch.allclose(after.covariance, plain.covariance, atol=1e-7)
        assert torch.allclose(after.mean, plain.mean, atol=1e-7)


def test_beliefs_stay_between_nothing_and_everything() -> None:
    _, states, _ = planned(12)
    for state in states:
        for part in (state.known, state.covariance - state.known):
            assert float(torch.linalg.eigvalsh(part).min()) > -1e-9


def test_the_learner_leaves_the_plan_and_its_filter() -> None:
    learner = learner_of(FILTERED)
    learner.update({"items": batch_of(3)}, 0.0)
    net = learner.policy.net
    assert net.filter is not None and learner.theta is not None
    gains, slopes = net.filter.detach().double().unbind(1)
    noise = torch.diag((2 * learner.theta[:, -2]).exp() / 2)
    start = 0.01 * torch.eye(2).double()
    assert torch.allclose(gains[0], start @ torch.linalg.inv(start + noise), atol=1e-6)
    assert float(slopes[0].abs().sum()) == 0 and float(slopes[1:].abs().sum((1, 2)).min()) > 0
