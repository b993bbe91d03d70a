"""n-step targets, double Q-learning, the Huber loss, value rescaling and R2D2's priorities against slow twins.

Mutations seen to fail: a reward discounted by its own γ; moves behind a cut counted again; the discount of a move
that is not valid; double Q-learning that chooses by the target; Huber's offset left out; weights above 1, of the
square root; every item in the first item's row, or all copied. Of every move's n-step target:
one move less, γ left out, a cut passed over, the next row's value behind a cut. h without ε x, h⁻¹ with another root;
a priority with η on the mean, or the mean over moves that are not valid.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_rl.formulas.q_learning import (
    greedy_value,
    huber,
    importance_weights,
    item_rows,
    mixed_priority,
    n_step_return,
    n_step_targets,
    rescaled,
    unscaled,
)
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


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_every_move_has_the_target_of_an_item_that_begins_there(case: Case, n: int) -> None:
    reward, discount, value, valid = case.tensors()
    actual = n_step_targets(reward, discount, value, valid.bool(), n)
    for t in range(len(reward)):
        stop = min(t + n, len(reward))
        for k in range(reward.shape[1]):
            rows = (x[t:stop, k] for x in (case.reward, case.discount, case.valid))
            assert float(actual[t, k]) == pytest.approx(twin(*rows, case.value[t:, k]), abs=1e-12)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.0])
def test_values_are_rescaled_and_back(epsilon: float) -> None:
    x = torch.tensor([-1e6, -300.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 42.0, 1e4])
    y = rescaled(x, epsilon)
    twins = [np.sign(v) * (np.sqrt(abs(v) + 1) - 1) + epsilon * v for v in x.double().tolist()]
    assert np.allclose(y.double(), twins, rtol=1e-5, atol=1e-7)
    assert torch.allclose(unscaled(y, epsilon), x, rtol=1e-4, atol=1e-6)
    if epsilon:
        paper = [
            np.sign(v) * (((np.sqrt(1 + 4 * epsilon * (abs(v) + 1 + epsilon)) - 1) / (2 * epsilon)) ** 2 - 1)
            for v in y.double().tolist()
        ]
        assert np.allclose(unscaled(y, epsilon), paper, rtol=1e-4, atol=1e-6)


def test_a_priority_mixes_the_largest_error_and_the_mean() -> None:
    error = torch.tensor([[1.0, -4.0, 9.0], [-3.0, 1.0, 9.0], [50.0, 1.0, 9.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [False, True, False]])
    assert mixed_priority(error, valid, 0.9).tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 0.9 * 4 + 0.1 * 2, 0.0])


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


@pytest.mark.parametrize("row", [[2, 2, 2], [1, 2, 0]])
def test_every_item_has_the_row_of_its_own(row: list[int]) -> None:
    x = torch.arange(4 * 3 * 2).reshape(4, 3, 2)
    picked = item_rows(x, torch.tensor(row))
    assert [picked[k].tolist() for k in range(3)] == [x[row[k], k].tolist() for k in range(3)]
    same = len(set(row)) == 1
    assert (picked.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == same, "frames were copied"
