"""Statistics over runs against a plain twin, and against rliable, the authors' own library, where it is installed.

rliable is no dependency, for it asks for two further libraries of statistics; ``pip install --no-deps rliable`` is
enough here.
Mutations seen to fail: trimming 0.2; strata pooled before the resampling; half a pair more in U; profile with >=.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.analysis import statistics
from hpc_rl.types import Array

DRAW = np.random.default_rng(5)


def slow_iqm(scores: Array) -> float:
    ordered = np.sort(scores.ravel())
    cut = int(0.25 * len(ordered))
    return float(np.mean(ordered[cut : len(ordered) - cut]))


@pytest.mark.parametrize("runs", [1, 3, 4, 5, 10])
def test_interquartile_mean(runs: int) -> None:
    scores = DRAW.normal(size=(runs, 3))
    assert statistics.iqm(scores) == pytest.approx([slow_iqm(scores[:, k]) for k in range(3)])
    assert statistics.iqm(*scores.T) == pytest.approx(slow_iqm(scores))


def test_the_interval_resamples_within_strata() -> None:
    """Two tasks whose scores lie far apart: a sample that mixed them would vary far more."""
    strata = [DRAW.normal(size=6), 100 + DRAW.normal(size=9)]
    low, high = statistics.interval(strata, lambda x, y, axis: (x.mean(axis) + y.mean(axis)) / 2)
    slow = [np.mean([DRAW.choice(x, len(x)).mean() for x in strata]) for _ in range(4000)]
    assert (low, high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.06)
    assert np.isnan(statistics.interval([strata[0], strata[1][:1]])).all()


def test_profile_and_probability_of_improvement() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 0.0])
    assert statistics.profile(x, np.array([0.0, 2.0, 4.0])) == pytest.approx([1, 0.25, 0.25])
    slow = np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y])
    assert statistics.improvement(x, y) == pytest.approx(slow)
    low, high = statistics.interval([x, y], statistics.improvement)
    assert 0 <= low <= slow <= high <= 1


def test_an_independent_library_agrees() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    scores, others = DRAW.normal(size=(7, 4)), DRAW.normal(size=(5, 4))
    assert statistics.iqm(*scores.T) == pytest.approx(metrics.aggregate_iqm(scores))
    each = [statistics.improvement(scores[:, k], others[:, k]) for k in range(4)]
    assert np.mean(each) == pytest.approx(metrics.probability_of_improvement(scores, others))
