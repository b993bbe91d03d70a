"""How well runs played on their way: training games from the episode table, greedy games from the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from hpc_rl.analysis import statistics
from hpc_rl.analysis.episodes import table
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.types import Array

WINDOW = 100  # training games behind a score
GRID = 200  # points of a curve over seeds
Kind = Literal["episodes", "metrics", "greedy"]
Score = Literal["return", "success"]


@dataclass(frozen=True)
class Curve:
    """Scores of one run in one environment, by the env steps of the whole job: mean raw returns of games, or the part
    of them that was a success.

    ``games`` are behind each score: of "episodes" and "metrics" the last `WINDOW` training games at most, of "greedy"
    those of an evaluation. ``total`` counts them over the whole run, where they are known.
    """

    run: RecordedRun
    environment: str
    kind: Kind
    steps: Array  # [n], rising
    scores: Array  # [n]
    games: Array  # [n]
    total: int

    @property
    def begin(self) -> int:
        """Where it can be drawn from: a mean of very few games only hides the curve."""
        return min(int(np.searchsorted(self.games, WINDOW)), len(self.steps) // 10)

    def reached(self, target: float) -> float:
        """Env steps at which the score first was ``target``, with `WINDOW` games behind it in training; else NaN."""
        enough = self.games >= (WINDOW if self.kind != "greedy" else 1)
        indices = np.flatnonzero(enough & (self.scores >= target))
        return float(self.steps[indices[0]]) if len(indices) else np.nan


def environments(run: RecordedRun) -> list[str]:
    """The ids of the environments that its columns play; in a mixture of n column k plays the (k mod n)-th."""
    environment = run.job.environment
    ids = environment.arguments.get("ids") if environment.id == "mixture" else None
    return [str(id) for id in ids] if isinstance(ids, list | tuple) and ids else [environment.id]


def training(runs: Sequence[RecordedRun], score: Score = "return") -> list[Curve]:
    """A curve for each environment of each run; of returns from the metrics where a run has no recorded episodes.

    Of successes there is none where no episode has one.
    """
    episodes = dict(list(table(runs).groupby("run", sort=False)))
    curves = []
    for run in runs:
        ids = environments(run)
        if (own := episodes.get(run.name)) is None:
            curves += _from_metrics(run, "mean_return_100", "metrics", "episodes") if score == "return" else []
            continue
        for k, id in enumerate(ids):
            games = own[(own["column"] % len(ids) == k) & own[score].notna()]
            if len(games):
                behind = np.minimum(np.arange(len(games)) + 1, WINDOW)
                steps, scores = games["env_steps"].to_numpy(float), running_mean(games[score].to_numpy())
                curves.append(Curve(run, id, "episodes", steps, scores, behind, len(games)))
    return curves


def greedy(runs: Sequence[RecordedRun], score: Score = "return") -> list[Curve]:
    """A curve for each run that played evaluations; over a mixture it is of all its environments."""
    return [curve for run in runs for curve in _from_metrics(run, f"greedy_{score}", "greedy", "")]


def judged(runs: Sequence[RecordedRun]) -> dict[str, list[Curve]]:
    """Environment -> a curve for each of its runs, by which they are compared.

    Those are greedy evaluations where all of them played these alone and from the first half of the run on, for
    exploration hides how well a policy plays; else training games.
    """
    played = {curve.run.name: curve for curve in greedy(runs) if curve.steps[0] <= curve.steps[-1] / 2}
    result: dict[str, list[Curve]] = {}
    for curve in training(runs):
        result.setdefault(curve.environment, []).append(curve)
    for id, own in result.items():
        evaluated = [played.get(curve.run.name) for curve in own]
        if all(other is not None and other.environment == id for other in evaluated):
            result[id] = [other for other in evaluated if other is not None]
    return result


def _from_metrics(run: RecordedRun, name: str, kind: Kind, count: str) -> list[Curve]:
    lines = progress(run)
    if name not in lines:
        return []
    lines = lines[pd.to_numeric(lines[name], errors="coerce").notna()]
    if not len(lines):
        return []
    games = lines[count].fillna(0).to_numpy(float) if count in lines else np.ones(len(lines))
    columns = (lines["env_steps"].to_numpy(float), lines[name].to_numpy(float), np.minimum(games, WINDOW))
    return [Curve(run, ", ".join(environments(run)), kind, *columns, int(games[-1]) if count in lines else 0)]


def running_mean(returns: Array, window: int = WINDOW) -> Array:
    """Entry i: mean of the last ``window`` returns up to and with i, of fewer at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(returns, dtype=np.float64)])
    end = np.arange(1, len(total))
    begin = np.maximum(0, end - window)
    mean: Array = (total[end] - total[begin]) / (end - begin)
    return mean


@dataclass(frozen=True)
class Band:
    """Interquartile mean over runs with its bootstrap interval, at points x [n]; ``whole``: all runs came so far."""

    x: Array
    middle: Array
    low: Array  # NaN of a single run
    high: Array
    whole: float


def band(curves: Sequence[Curve], xs: Sequence[Array]) -> Band:
    """Curves of runs that differ in the seed, over ``xs``: env steps or what else stands for them, one array each.

    A run that is done keeps its last score; the curve ends where the first one that is not done ends.
    """
    lows, highs = (
        [x[k] for x, k in zip(xs, ends, strict=True)] for ends in ([c.begin for c in curves], [-1] * len(xs))
    )
    going = [high for high, curve in zip(highs, curves, strict=True) if curve.run.state != "done"]
    x = np.linspace(max(lows), max(min(going or [max(highs)]), *lows), GRID)
    held = np.stack([np.interp(x, own, curve.scores) for own, curve in zip(xs, curves, strict=True)])
    return Band(x, statistics.iqm(held), *statistics.interval([held]), whole=min(highs))
