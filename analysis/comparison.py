"""Comparison of settings: scores with intervals, performance profiles, and which setting of a sweep matters.

A program to copy and edit: `python comparison.py RUN [RUN…] --out FOLDER`. Runs that differ in their seeds only are one
group; groups are compared at the same env steps, each environment by itself (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hpc_rl.analysis import RecordedRun, figures, groups, programs
from hpc_rl.analysis.scores import Curve, judged
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.statistics import improvement, interval, iqm, profile

SCORES = {"last": "last score", "mean": "mean score over training"}
ALL = "all environments, 0 the worst run and 1 the best"
MOST = 20  # groups in a picture
SETTINGS = 6
SENTENCES = 3  # about each score; the table has all


def scored(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row for each run: its last score and its mean score, up to the env steps that are common to all.

    A run that is done keeps its last score from there on; before its first score it has that one.
    """
    going = [curve.steps[-1] for curve in curves if curve.run.state != "done"]
    end = min(going) if going else max(curve.steps[-1] for curve in curves)
    grid = np.linspace(0, end, 1001)
    rows = []
    for curve in curves:
        begin = curve.begin
        values = np.interp(grid, curve.steps[begin:], curve.scores[begin:])
        rows.append({"run": curve.run.name, "environment": curve.environment, "kind": curve.kind,
                     "state": curve.run.state, "env_steps": int(end), "ended": int(curve.steps[-1]),
                     "last": values[-1], "mean": values.mean()})  # fmt: skip
    return pd.DataFrame(rows)


def normalized(runs: pd.DataFrame) -> pd.DataFrame:
    """Scores of each environment from 0, its worst run, to 1, its best."""
    result = runs.copy()
    for score in SCORES:
        own = runs.groupby("environment")[score]
        low, high = own.transform("min"), own.transform("max")
        result[score] = (runs[score] - low) / (high - low).where(high > low, 1.0)
    return result


def middle(runs: pd.DataFrame, environment: str) -> pd.DataFrame:
    """A row for each group and score: interquartile mean and interval; several environments are strata."""
    rows = []
    for name, own in runs.groupby("group", sort=False):
        for score in SCORES:
            strata = [part[score].to_numpy() for _, part in own.groupby("environment", sort=False)]
            low, high = interval(strata)
            rows.append({"environment": environment, "group": name, "score": score, "runs": len(own),
                         "iqm": float(iqm(*strata)), "low": float(low), "high": float(high)})  # fmt: skip
    return pd.DataFrame(rows)


def against_best(runs: pd.DataFrame, groups_of: pd.DataFrame) -> pd.DataFrame:
    """A row for each score and group but the best: the probability that a run of the best one beats one of it."""
    rows = []
    for score in SCORES:
        own = groups_of[groups_of["score"] == score].set_index("group")["iqm"]
        best = own.idxmax()
        x = runs.loc[runs["group"] == best, score].to_numpy()
        for name in own.index.drop(best):
            y = runs.loc[runs["group"] == name, score].to_numpy()
            low, high = interval([x, y], improvement)
            rows.append({"environment": runs["environment"].iloc[0], "score": score, "best": best, "other": name,
                         "best_runs": len(x), "other_runs": len(y), "probability": float(improvement(x, y)),
                         "low": float(low), "high": float(high)})  # fmt: skip
    return pd.DataFrame(rows)


def partitions(runs: pd.DataFrame, settings: dict[str, dict[str, object]]) -> dict[str, list[str]]:
    """Setting -> its value in each of these runs; of settings that divide them alike one, with how many more there are.

    A setting of another method is "absent".
    """
    alike: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
    for key, values in settings.items():
        own = [str(values.get(name, "absent")) for name in runs["run"]]
        division = tuple(own.index(value) for value in own)
        if len(set(division)) > 1:
            alike.setdefault(division, ([], own))[0].append(key)
    return {f"{keys[0]} (and {len(keys) - 1} alike)" if keys[1:] else keys[0]: own for keys, own in alike.values()}


def effects(runs: pd.DataFrame, settings: dict[str, dict[str, object]]) -> pd.DataFrame:
    """A row for each setting and score: how much of the scores' variance its values explain, and its best value."""
    rows = []
    for key, values in partitions(runs, settings).items():
        for score in SCORES:
            parts = {name: part.to_numpy() for name, part in runs[score].groupby(values)}
            means = {name: part.mean() for name, part in parts.items()}
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            total = ((runs[score] - runs[score].mean()) ** 2).sum()
            between = sum(len(part) * (part.mean() - runs[score].mean()) ** 2 for part in parts.values())
            repeated = total > 0 and min(map(len, parts.values())) > 1
            low, high = interval([parts[best], parts[worst]], difference)
            rows.append({"environment": runs["environment"].iloc[0], "setting": key, "score": score,
                         "values": len(parts), "share_of_variance": between / total if total > 0 else 0.0,
                         "p": stats.kruskal(*parts.values()).pvalue if repeated else np.nan,
                         "best": best, "worst": worst, "difference": means[best] - means[worst],
                         "low": float(low), "high": float(high)})  # fmt: skip
    return pd.DataFrame(rows).sort_values(["score", "share_of_variance"], ascending=[True, False])


def difference(x: Any, y: Any, axis: int = 0) -> Any:
    return x.mean(axis) - y.mean(axis)


def draw_groups(figure: Any, table: pd.DataFrame) -> None:
    """For each environment and score a dot with its interval for each group, the best on top."""
    parts = list(table.groupby(["environment", "score"], sort=False))
    for axis, ((id, score), table_of) in zip(figures.axes(figure, len(parts)), parts, strict=True):
        own = table_of.sort_values("iqm").tail(MOST)
        error = [(own["iqm"] - own["low"]).fillna(0), (own["high"] - own["iqm"]).fillna(0)]
        axis.errorbar(own["iqm"], [f"{name} ({n})" for name, n in zip(own["group"], own["runs"], strict=True)],
                      xerr=error, fmt="o", capsize=3)  # fmt: skip
        axis.margins(y=0.3 if len(own) < 4 else 0.1)
        axis.set(xlabel=SCORES[score], title=id if len(id) < 40 else "all environments")


def draw_profiles(figure: Any, runs: pd.DataFrame) -> None:
    """For each environment the share of each group's runs whose last score is above a threshold."""
    parts = list(runs.groupby("environment", sort=False))
    colour = dict(zip(runs["group"].unique(), figures.COLOURS, strict=False))
    for axis, (id, own) in zip(figures.axes(figure, len(parts)), parts, strict=True):
        low, high = own["last"].min(), own["last"].max()
        edge = 0.02 * (high - low) + 1e-9
        thresholds = np.linspace(low - edge, high + edge, 201)
        for name, part in own[own["group"].isin(colour)].groupby("group", sort=False):
            axis.step(thresholds, profile(part["last"].to_numpy(), thresholds), color=colour[name], label=name)
        axis.set(xlabel="threshold τ", ylabel="share of runs with last score > τ", title=id, ylim=(-0.02, 1.02))
    figures.legend(figure)


def draw_settings(figure: Any, runs: pd.DataFrame, settings: dict[str, list[str]]) -> None:
    """For each setting the runs' mean score over training by its value, a line at the mean of each value."""
    panels = figures.axes(figure, len(settings), 3)
    for k, (axis, (key, values)) in enumerate(zip(panels, settings.items(), strict=True)):
        order = sorted(set(values), key=_number)
        place = np.array([order.index(value) for value in values])
        axis.plot(place + np.linspace(-0.12, 0.12, len(place)), runs["mean"], "o", alpha=0.6, markersize=4)
        means = [runs["mean"][place == at].mean() for at in range(len(order))]
        axis.plot(range(len(order)), means, "_", markersize=24, markeredgewidth=2)
        axis.set_xticks(range(len(order)), [value[:14] for value in order], rotation=20 if len(order) > 3 else 0)
        axis.set(xlabel=key, xlim=(-0.6, len(order) - 0.4), ylabel="" if k % 3 else SCORES["mean"])


def _number(text: str) -> tuple[bool, float, str]:
    """Sorts numbers as numbers, before words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Groups of runs against each other. Raises NotRecorded where runs differ in nothing but their seeds."""
    label = {run.name: name for name, own in groups.by_setting(runs, "environment.").items() for run in own}
    if len(set(label.values())) < 2:
        raise NotRecorded("these runs differ in nothing but seeds and environments; give runs of several settings")
    tables = []
    for curves in judged(runs).values():
        own = scored(curves)
        own["group"] = own["run"].map(label)
        tables.append(own)
    compared = [own for own in tables if own["group"].nunique() > 1]
    if not compared:
        raise NotRecorded("no two settings have games of the same environment; nothing can be compared")
    every = pd.concat(compared, ignore_index=True)
    middles = [middle(own, own["environment"].iloc[0]) for own in compared]
    better = pd.concat([against_best(*pair) for pair in zip(compared, middles, strict=True)], ignore_index=True)
    shared = every.groupby("group")["environment"].nunique()
    if len(compared) > 1 and (complete := shared.index[shared == len(compared)]).size > 1:
        middles.append(middle(normalized(every)[every["group"].isin(complete)], ALL))
    settings = {k: v for k, v in groups.differing(runs).items() if not k.startswith(("environment.", "budget."))}
    effect = pd.concat([effects(own, settings) for own in compared if partitions(own, settings)], ignore_index=True)
    of_groups = pd.concat(middles, ignore_index=True)
    pictures = {"comparison": lambda figure: draw_groups(figure, of_groups),
                "performance_profiles": lambda figure: draw_profiles(figure, every)}  # fmt: skip
    if len(compared) == 1 and len(values := partitions(every, settings)) > 1:
        first = list(dict.fromkeys(effect.loc[effect["score"] == "mean", "setting"]))[:SETTINGS]
        pictures["settings"] = lambda figure: draw_settings(figure, every, {key: values[key] for key in first})
    told = better.groupby(["environment", "score"], sort=False).head(SENTENCES)
    return Section(
        "Comparison",
        (*map(sentence, told.itertuples()), *matters(effect), *remarks(runs, tables, compared)),
        "Scores: mean return of the newest greedy evaluation where all runs of an environment played these from the"
        " first half on, else of the last 100 training games; last: at the env steps up to which all runs have gone,"
        " where a run that is done keeps its last score; mean: over env steps from 0 to there. Interquartile means with"
        " 95 % percentile bootstrap intervals over runs. Probability that a run of the best group beats one of another:"
        " Mann and Whitney's U over n·m, ties a half. Profile: the share of a group's runs above each threshold. All"
        " environments: scores scaled to the worst and best run of each, runs drawn within each environment. Settings:"
        " share of the runs' variance between the means of its values (η²) and p of Kruskal and Wallis; its best value"
        " was chosen by these runs, so the difference is an upper estimate; settings that change together share it.",
        pictures,
        {"comparison_groups": of_groups, "comparison_with_the_best": better, "comparison_settings": effect,
         "comparison_runs": every},
    )  # fmt: skip


def sentence(row: Any) -> str:
    runs = f"{row.best_runs} and {row.other_runs} runs"
    span = f"95 %: {row.low:.2f} to {row.high:.2f}, {runs}" if np.isfinite(row.low) else f"{runs}: no interval"
    better = f"a run of {row.best} beats one of {row.other} with a probability of {row.probability:.2f} ({span})"
    return f"{row.environment}, {SCORES[row.score]}: {better}."


def matters(effect: pd.DataFrame) -> list[str]:
    """The setting that explains most of the mean score, for each environment of a sweep over several."""
    if effect.empty or effect["setting"].nunique() < 2:
        return []
    own = effect[effect["score"] == "mean"].groupby("environment", sort=False).head(1)
    return [f"{row.environment}: {row.setting} explains {row.share_of_variance:.0%} of the variance of the mean score,"
            f" the most of all settings; {row.best} is better than {row.worst} by {row.difference:.4g}."
            for row in own.itertuples()]  # fmt: skip


def remarks(runs: Sequence[RecordedRun], tables: Sequence[pd.DataFrame], compared: Sequence[pd.DataFrame]) -> list[str]:
    """What is not compared, a sentence each."""
    known = {name for table in tables for name in table["run"]}
    short = [
        f"{own['environment'].iloc[0]}: compared up to {own['env_steps'].iloc[0]:,} env steps, for"
        f" {own.loc[own['ended'].where(own['state'] != 'done').idxmin(), 'run']} is not done and has not gone further."
        for own in compared
        if own["env_steps"].iloc[0] < own["ended"].max()
    ]
    alone = [table["environment"].iloc[0] for table in tables if not any(table is other for other in compared)]
    absent = [run.name for run in runs if run.name not in known]
    return [
        *short,
        *([f"Returns of {len(tables)} environments are not alike; each is compared by itself."] * (len(tables) > 1)),
        *([f"{', '.join(alone)}: runs of one setting only, left out."] if alone else []),
        *([f"{', '.join(absent)}: no games yet, left out."] if absent else []),
    ]


if __name__ == "__main__":
    programs.main(analyze, __doc__)
