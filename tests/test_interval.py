"""The interval that `hpc-rl eval` prints.

Mutations seen to fail: 1.96 for t; n instead of n − 1 below the deviation.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.evaluation import mean_interval


def test_the_interval_holds_the_truth_as_often_as_it_promises() -> None:
    draw = np.random.default_rng(1)
    for n in (2, 5, 20):
        hits = 0
        for values in draw.normal(3.0, 2.0, (2000, n)):
            _, low, high = mean_interval(values.tolist(), 0.95)
            assert low is not None and high is not None
            hits += low <= 3.0 <= high
        assert abs(hits / 2000 - 0.95) < 0.015, n


def test_one_value_has_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert mean_interval([4.0], 0.95) == (4.0, None, None)
    assert mean_interval([4.0] * 5, 0.95) == (4.0, 4.0, 4.0)
    mean, low, high = mean_interval([1.0, 2.0, 4.0], 0.95)  # t = 4.303 for two degrees of freedom (Student's table)
    assert (mean, low, high) == pytest.approx((7 / 3, 7 / 3 - 3.79461, 7 / 3 + 3.79461), abs=1e-4)
