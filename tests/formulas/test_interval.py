"""Student's t against its density summed by rule, published quantiles, and the promise of the interval itself.

Mutations seen to fail: 1.96 for t; n instead of n − 1 below the deviation; one term of the series too few.
"""

from __future__ import annotations

from math import lgamma

import numpy as np
import pytest

from hpc_rl.formulas.interval import mean_interval, t_quantile


def within(t: float, freedom: int) -> float:
    """P(|T| ≤ t): the density Γ((ν+1)/2) / (√(νπ) Γ(ν/2)) (1 + x²/ν)^(−(ν+1)/2) summed over −t..t."""
    x = np.linspace(-t, t, 2_000_001)
    constant = np.exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / np.sqrt(freedom * np.pi)
    return float(np.trapezoid(constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 8, 19, 100, 1001])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_quantile_is_that_of_the_density(freedom: int, level: float) -> None:
    assert within(t_quantile(level, freedom), freedom) == pytest.approx(level, abs=1e-7)


def test_quantiles_as_published_and_their_limit() -> None:
    found = [round(t_quantile(0.95, freedom), 3) for freedom in (1, 2, 4, 9, 19)]
    assert found == [12.706, 4.303, 2.776, 2.262, 2.093]  # Student's table, two-sided 5 %
    assert t_quantile(0.95, 200_000) == pytest.approx(1.95997, abs=1e-4)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    for n in (2, 5, 20):
        held = 0
        for values in draw.normal(3.0, 2.0, (2000, n)):
            _, low, high = mean_interval(values.tolist())
            assert low is not None and high is not None
            held += low <= 3.0 <= high
        assert abs(held / 2000 - 0.95) < 0.015, n


def test_one_value_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert mean_interval([4.0]) == (4.0, None, None)
    assert mean_interval([4.0] * 5) == (4.0, 4.0, 4.0)
    mean, low, high = mean_interval([1.0, 2.0, 4.0])
    assert (mean, low, high) == pytest.approx((7 / 3, 7 / 3 - 3.79461, 7 / 3 + 3.79461), abs=1e-4)
