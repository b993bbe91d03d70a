"""A cause and its effect within stages of training: what changes with training must not pass for a cause."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_rl.analysis.stages import STAGES
from hpc_rl.analysis.statistics import interval
from hpc_rl.types import Array


def stage(env_steps: Array, end: float) -> Array:
    """The stage, 0 to `STAGES` − 1, of each of these env steps of a run that came to ``end``."""
    part = np.floor(np.asarray(env_steps, float) * STAGES / max(end, 1.0)).astype(np.int64)
    return np.clip(part, 0, STAGES - 1)


def halves(cause: Array, effect: Array) -> tuple[Array, Array] | None:
    """``effect`` where ``cause`` is below, and where above its median; None where either has less than two."""
    middle = np.median(cause) if len(cause) else np.nan
    low, high = effect[cause < middle], effect[cause > middle]
    return (low, high) if min(len(low), len(high)) > 1 else None


def within(parts: Sequence[tuple[Array, Array]]) -> tuple[float, float, float]:
    """Mean over stages of effect(high) − effect(low), by numbers of values, and its interval; halves are strata."""
    weights = np.array([len(low) + len(high) for low, high in parts], float)

    def statistic(*strata: Array, axis: int = 0) -> Array:
        means = [stratum.mean(axis) for stratum in strata]
        differences = np.stack([high - low for low, high in zip(means[::2], means[1::2], strict=True)])
        total: Array = np.tensordot(weights / weights.sum(), differences, 1)
        return total

    strata = [half for part in parts for half in part]
    low, high = interval(strata, statistic)
    return float(statistic(*strata)), float(low), float(high)
