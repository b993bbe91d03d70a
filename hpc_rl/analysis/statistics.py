"""Statistics over few runs, by the names of Agarwal et al. 2021 (arXiv 2108.13264); computed by scipy.

A stratum is the runs of one task: an array [runs, …], one score for each run, or one for each run and point. Bootstrap
samples draw runs anew within each stratum, never across them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from hpc_rl.types import Array

RESAMPLES = 2_000
CONFIDENCE = 0.95
Statistic = Callable[..., Array]
"""(strata…, axis) -> the statistic over all of them along that axis."""


def iqm(*strata: Array, axis: int = 0) -> Array:
    """Interquartile mean: of all scores without the lowest and the highest quarter; of fewer than four the mean."""
    middle: Array = stats.trim_mean(np.concatenate(strata, axis), 0.25, axis)
    return middle


def interval(strata: Sequence[Array], statistic: Statistic = iqm, seed: int = 0) -> tuple[Array, Array]:
    """Percentile bootstrap interval (low, high) of a statistic; NaN where a stratum has fewer than two runs."""
    if min(len(stratum) for stratum in strata) < 2:
        nothing = np.full(np.shape(statistic(*strata, axis=0)), np.nan)
        return nothing, nothing
    draw = np.random.default_rng(seed)
    result = stats.bootstrap(
        tuple(strata), statistic, n_resamples=RESAMPLES, batch=200, vectorized=True, axis=0,
        confidence_level=CONFIDENCE, method="percentile", rng=draw,
    )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


def profile(scores: Array, thresholds: Array) -> Array:
    """Performance profile, [thresholds]: the share of runs whose score is above each."""
    above: Array = np.asarray(scores)[:, None] > thresholds
    share: Array = above.mean(axis=0)
    return share


def improvement(x: Array, y: Array, axis: int = 0) -> Array:
    """P(X > Y) + ½ P(X = Y) of a run of one stratum against a run of another: Mann and Whitney's U over n·m."""
    u: Array = stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
    share: Array = u / (np.shape(x)[axis] * np.shape(y)[axis])
    return share
