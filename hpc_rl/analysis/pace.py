"""How far the whole job was when a column made a move, from the versions that were recorded with the moves.

Columns do not move alike: actors differ in speed, ranks come and go. What they share is the weights: column c made its
first S_c(v) env steps with versions before v. Between the moves where its version changed S_c is linear, so that it
maps a column's env step to a version with a fraction and back, and the job was at Σ_c S_c(v). Columns that were not
recorded are taken to have moved like the mean of those that were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_rl.types import Array, Tree

GRID = 20_000  # versions at which Σ_c S_c is evaluated at most; between them it is linear


@dataclass(frozen=True)
class Pace:
    """Column -> (versions [k], env steps [k]), both rising, and how many columns the job has."""

    knots: dict[int, tuple[Array, Array]]
    columns: int


def pace(parts: list[Tree], columns: int) -> Pace:
    """From the pace_… leaves of `storage.recorded.ends` of all segments of one run; the job has so many ``columns``."""
    leaves = [part for part in parts if len(part["pace_column"])]
    names = ("pace_column", "pace_version", "pace_step")
    column, version, step = (np.concatenate([np.empty(0, np.int64), *(p[name] for p in leaves)]) for name in names)
    closes = [np.append(np.diff(part["pace_column"]) != 0, True) for part in leaves]
    close = np.concatenate([np.empty(0, bool), *closes])
    knots = {}
    for number in np.unique(column).tolist():
        own = column == number
        order = np.argsort(step[own], kind="stable")
        steps, versions, ends = step[own][order], version[own][order], close[own][order]
        ends[-1] = False  # where one segment closes the next goes on; only the last of a column is its end
        steps, versions = steps[~ends], versions[~ends]
        rising = np.diff(np.maximum.accumulate(versions), prepend=versions[:1] - 1) > 0
        knots[number] = (versions[rising].astype(float), steps[rising].astype(float))
    return Pace(knots, columns)


def job_steps(pace: Pace, column: Array, step: Array) -> Array:
    """Env steps of the whole job, int64 [n], when ``column`` [n] had made ``step`` [n] env steps of its own."""
    versions = np.empty(len(column))
    for number, (known_versions, steps) in pace.knots.items():
        own = column == number
        versions[own] = np.interp(step[own], steps, known_versions)
    grid = np.unique(versions)
    if len(grid) > GRID:
        grid = np.unique(np.quantile(grid, np.linspace(0, 1, GRID)))
    total = np.zeros(len(grid))
    for known_versions, steps in pace.knots.values():
        total += np.interp(grid, known_versions, steps)
    scale = pace.columns / max(len(pace.knots), 1)
    return np.rint(np.interp(versions, grid, total) * scale).astype(np.int64)
