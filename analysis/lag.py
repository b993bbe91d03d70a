"""Policy lag of episodes, and whether late ones return less: within stages of training, for both change with training.

A program to copy and edit: `python lag.py RUN [RUN…] --out FOLDER`. The lag of an episode is the number of updates that
the learner had made beyond the weights which acted at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.episodes import table
from hpc_rl.analysis.halves import halves, stage, within
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import STAGES

MOST = 4_000  # episodes of a half of a stage that the interval is drawn from
RUNS = len(figures.COLOURS)


def by_stage(name: str, episodes: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage of a run: quantiles of lag, mean returns of its less and its more late half, and ρ."""
    end = episodes["env_steps"].max()
    parts = stage(episodes["env_steps"].to_numpy(), end)
    rows = []
    for k, own in episodes.groupby(parts):
        lag, score = own["lag"].to_numpy(), own["return"].to_numpy()
        split = halves(lag, score)
        low, high = split or (np.full(1, np.nan), np.full(1, np.nan))
        varies = len(own) > 2 and np.ptp(lag) > 0 and np.ptp(score) > 0
        rows.append({"run": name, "stage": k, "env_steps": int(end * (k + 1) / STAGES), "episodes": len(own),
                     "lag_10": np.quantile(lag, 0.1), "lag_50": np.median(lag), "lag_90": np.quantile(lag, 0.9),
                     "return_less_late": low.mean(), "return_more_late": high.mean(),
                     "rank_correlation": stats.spearmanr(lag, score).statistic if varies else np.nan})  # fmt: skip
    return pd.DataFrame(rows)


def relation(name: str, episodes: pd.DataFrame) -> dict[str, Any]:
    """How much more the more late half of each stage returned, over all stages, with interval; NaN without halves."""
    parts = stage(episodes["env_steps"].to_numpy(), episodes["env_steps"].max())
    split = [halves(own["lag"].to_numpy(), own["return"].to_numpy()) for _, own in episodes.groupby(parts)]
    pairs = [tuple(_thinned(half) for half in pair) for pair in split if pair is not None]
    difference = within(pairs) if pairs else (np.nan, np.nan, np.nan)
    lag, score = episodes["lag"], episodes["return"]
    quantiles = {f"lag_{q:.0%}".rstrip("%"): lag.quantile(q) for q in (0.1, 0.5, 0.9)}
    varies = lag.nunique() > 1 and score.nunique() > 1
    return {"run": name, "episodes": len(episodes), **quantiles, "lag_most": lag.max(),
            "correlation_without_stages": stats.spearmanr(lag, score).statistic if varies else np.nan,
            **dict(zip(("difference", "low", "high"), difference, strict=True))}  # fmt: skip


def _thinned(values: Any) -> Any:
    return values[:: -(-len(values) // MOST)]


def draw_lag(figure: Any, stages: pd.DataFrame, logged: dict[str, pd.DataFrame]) -> None:
    """Median lag by stage with the span of the middle 80 %; thin: what rank 0 logged."""
    axis = figure.subplots()
    for name, own in list(stages.groupby("run", sort=False))[:RUNS]:
        (line,) = axis.plot(own["env_steps"], own["lag_50"], "o-", markersize=4, label=name)
        axis.fill_between(
            own["env_steps"], own["lag_10"], own["lag_90"], alpha=0.15, color=line.get_color(), linewidth=0
        )
        if name in logged:
            axis.plot(
                logged[name]["env_steps"], logged[name]["policy_lag"], linewidth=0.8, alpha=0.6, color=line.get_color()
            )
    figures.env_steps(axis)
    axis.set(ylabel="lag at an episode's end (updates)", ylim=(0, None))
    axis.set_title("Median and middle 80 % of a stage; thin: policy_lag of the metrics", fontsize="medium")
    figures.legend(figure)


def draw_returns(figure: Any, stages: pd.DataFrame) -> None:
    """For each run how much more the more late half of a stage returned."""
    axis = figure.subplots()
    for name, own in list(stages.groupby("run", sort=False))[:RUNS]:
        axis.plot(own["env_steps"], own["return_more_late"] - own["return_less_late"], "o-", markersize=4, label=name)
    axis.axhline(0, color="gray", linewidth=1)
    figures.env_steps(axis)
    axis.set(ylabel="return of the more late half\nminus that of the less late")
    figures.legend(figure)


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Lag over training and its relation to return. Raises NotRecorded where no episode has a lag."""
    episodes = table(runs)
    late = episodes[episodes["lag"].notna()]
    if late.empty:
        raise NotRecorded(
            f"{runs[0].path} has no recorded episodes with a lag; it takes the updates in rank 0's metrics"
        )
    own = dict(list(late.groupby("run")))
    grouped = [(run.name, own[run.name]) for run in runs if run.name in own]
    stages = pd.concat([by_stage(name, own) for name, own in grouped], ignore_index=True)
    relations = pd.DataFrame([relation(name, own) for name, own in grouped])
    logged = {run.name: lines for run in runs if "policy_lag" in (lines := progress(run))}
    pictures = {}
    if relations["lag_most"].max() > 0:
        pictures["lag"] = lambda figure: draw_lag(figure, stages, logged)
    if relations["difference"].notna().any():
        pictures["return_by_lag"] = lambda figure: draw_returns(figure, stages)
    return Section(
        "Policy lag",
        tuple(map(sentence, relations.itertuples())),
        "Lag: updates of the learner by the env steps at an episode's end (metrics of rank 0, linear between its lines)"
        " minus the version that acted then; where lines are far apart it is known to some updates only. Stages: tenths"
        " of a run's env steps. Within each the episodes are halved at its median lag, ties left out; the difference of"
        " their mean returns is averaged over stages by episodes, with a 95 % bootstrap interval whose strata are the"
        " halves. A difference is no proof: slow actors may play other games.",
        pictures, {"lag_runs": relations, "lag_stages": stages},
    )  # fmt: skip


def sentence(row: Any) -> str:
    text = f"{row.run}: lag {row.lag_50:.3g} updates in the median, {row.lag_90:.3g} at the 90th percentile"
    if row.lag_most == 0:
        return f"{row.run}: no lag, for every move was made by the newest weights."
    if not np.isfinite(row.difference):
        return f"{text}; it hardly varies within a stage of training, so nothing says what it does to returns."
    shown = "less" if row.high < 0 else "more" if row.low > 0 else ""
    told = (
        f"the more late half of a stage returned {abs(row.difference):.3g} {'less' if row.difference < 0 else 'more'}"
    )
    span = f"95 %: {row.low:+.3g} to {row.high:+.3g}"
    return f"{text}; {told} ({span}{'' if shown else ', so no relation is shown'})."


if __name__ == "__main__":
    programs.main(analyze, __doc__)
