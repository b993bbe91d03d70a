"""n-step targets, double Q-learning and the Huber loss against slow twins in the papers' notation.

Mutations seen to fail: a reward discounted by its own γ; moves behind a cut counted again; the discount of a move
that is not valid; double Q-learning that chooses by the target; Huber's offset left out; weights
above 1, or of the square root.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_rl.formulas.q_learning import greedy_value, huber, importance_weights, n_step_return
from tests.formulas.test_returns import GAMMA, Case, random_case

CASES = [random_case(seed, steps=steps) for seed, steps in enumerate([1, 2, 3, 3, 5, 5, 8, 14])]


def twin(reward: np.ndarray, discount: np.ndarray, valid: np.ndarray, value: np.ndarray) -> float:
    """y = Σ_{k<m} γᵏ r_k + γᵐ V(x_m) of one item, by walking through it; nothing is added once it terminated."""
    y, power, m = 0.0, 1.0, 0
    while m < len(valid) and valid[m]:
        y += power * reward[m]
        if discount[m] == 0:
            return y
        power, m = power * GAMMA * discount[m], m + 1
    return float(y + power * value[m])


@pytest.mark.parametrize("case", CASES)
def test_the_target_is_that_of_each_item(case: Case) -> None:
    reward, discount, value, valid = case.tensors()
    total, factor, row = n_step_return(reward, discount, valid.bool())
    columns = range(reward.shape[1])
    actual = total + factor * value[row, list(columns)]
    expected = [twin(case.reward[:, k], case.discount[:, k], case.valid[:, k], case.value[:, k]) for k in columns]
    assert np.allclose(actual, expected, atol=1e-12)


def test_the_cases_hold_every_kind_of_end() -> None:
    kinds = set()
    for case in CASES:
        for k in range(case.reward.shape[1]):
            valid = case.valid[:, k]
            m = len(valid) if valid.all() else int(np.argmin(valid))
            end = "cut" if m < len(valid) else "whole"
            kinds.add("none" if not m else "terminated" if (case.discount[:m, k] == 0).any() else end)
    assert kinds == {"none", "terminated", "cut", "whole"}


def test_a_time_limit_bootstraps_from_the_last_observation() -> None:
    reward = torch.tensor([[1.0], [2.0], [100.0], [100.0]])
    discount, valid = torch.tensor([[0.5], [0.5], [7.0], [0.5]]), torch.tensor([[True], [True], [False], [True]])
    total, factor, row = n_step_return(reward, discount, valid)
    assert (float(total), float(factor), int(row)) == (2.0, 0.25, 2)


def test_a_termination_has_no_value_behind_it() -> None:
    reward, valid = torch.tensor([[1.0], [2.0], [torch.nan]]), torch.tensor([[True], [True], [False]])
    total, factor, row = n_step_return(reward, torch.tensor([[0.5], [0.0], [torch.nan]]), valid)
    assert (float(total), float(factor), int(row)) == (2.0, 0.0, 2)


def test_the_other_players_values_count_against_one() -> None:
    """Two moves of a game of two: I get 1, my opponent 2, then it is my turn again at V = 10."""
    reward, valid = torch.tensor([[1.0], [2.0]]), torch.ones(2, 1, dtype=torch.bool)
    total, factor, _ = n_step_return(reward, torch.tensor([[-0.5], [-0.5]]), valid)
    assert float(total + factor * 10.0) == 1.0 - 0.5 * 2.0 + 0.25 * 10.0


def test_double_q_learning_chooses_by_one_network_and_values_by_the_other() -> None:
    target, online = torch.tensor([[1.0, 5.0, 3.0], [4.0, 2.0, 0.0]]), torch.tensor([[0.0, 1.0, 9.0], [1.0, 2.0, 3.0]])
    assert greedy_value(target).tolist() == [5.0, 4.0]
    assert greedy_value(target, online).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("limit", [0.0, 1.0, 2.5])
def test_huber_has_a_clipped_gradient(limit: float) -> None:
    error = torch.tensor([-4.0, -1.0, -0.3, 0.0, 0.7, 2.4, 5.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    summed = huber(error, weight, limit)
    expected = 0.0
    for x, w in zip(error.tolist(), weight.tolist(), strict=True):
        expected += w * (0.5 * x * x if not limit or abs(x) <= limit else limit * (abs(x) - 0.5 * limit))
    assert float(summed) == pytest.approx(expected)
    summed.backward()  # type: ignore[no-untyped-call]
    clipped = error.detach().clamp(-limit, limit) if limit else error.detach()
    assert torch.allclose(error.grad, weight * clipped)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_those_of_the_least_likely_item(beta: float) -> None:
    """w_i = (N P(i))^(-β) / max_k w_k, in the paper's notation."""
    priority = np.random.default_rng(0).exponential(size=20)
    share = priority / priority.sum()
    w = (len(share) * share) ** -beta
    actual = importance_weights(torch.tensor(share / share.min()), beta)
    assert np.allclose(actual, w / w.max()) and actual.max() == 1
