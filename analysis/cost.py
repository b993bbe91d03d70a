"""Cost of a score: core-hours, GPU-hours and energy until runs first played so well.

A program to copy and edit: `python cost.py RUN [RUN…] --out FOLDER [--target RETURN]`. Without a target it takes the
job's own and four levels between what runs began with and the best they came to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, groups, programs
from hpc_rl.analysis.progress import hours_at
from hpc_rl.analysis.resources import Resources, resources
from hpc_rl.analysis.scores import WINDOW, Curve, judged
from hpc_rl.analysis.sections import NotRecorded, Section

SHARES = (0.25, 0.5, 0.75, 0.9)  # of the way from where runs began to the best score
POINTS = 60  # of a line in the picture
KEYS, AMOUNTS = ["environment", "group", "return"], ["env_steps", "hours", "core_hours", "gpu_hours", "kwh"]


def levels(curves: Sequence[Curve], target: float | None) -> list[float]:
    """The returns whose cost is looked for, rising."""
    begin = float(np.median([curve.scores[curve.begin] for curve in curves]))
    best = max(float(curve.scores[curve.begin :].max()) for curve in curves)
    between = [float(f"{begin + share * (best - begin):.3g}") for share in SHARES if best > begin]
    goals = {target} if target is not None else {curve.run.job.budget.stop_at_return for curve in curves} | {*between}
    return sorted(goal for goal in goals if goal is not None)


def costs(curve: Curve, group: str, goals: Sequence[float], given: Resources) -> list[dict[str, Any]]:
    """A row for each goal: what the run had used of time and machines when its score first was that, NaN if never."""
    steps = np.array([curve.reached(goal) for goal in goals])
    hours = hours_at(curve.run, steps)
    return [
        {"environment": curve.environment, "group": group, "run": curve.run.name, "return": goal, "env_steps": at,
         "hours": spent, "core_hours": spent * given.cores, "gpu_hours": spent * given.gpus,
         "kwh": spent * given.kilowatts}
        for goal, at, spent in zip(goals, steps, hours, strict=True)
    ]  # fmt: skip


def medians(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each group and goal: how many runs reached it, and the median cost over all of its runs.

    The cost of a run that did not is infinite, so that of a group of which less than half did is NaN.
    """
    known = rows[AMOUNTS].notna()
    filled = rows.assign(**{name: rows[name].where(known[name], np.inf) for name in AMOUNTS})
    grouped = filled.groupby(KEYS, sort=False)
    table = grouped[AMOUNTS].median().replace(np.inf, np.nan)
    table.insert(0, "reached", grouped["env_steps"].agg(lambda own: int(np.isfinite(own).sum())))
    table.insert(0, "runs", grouped.size())
    return table.reset_index()


def draw(figure: Any, curves: dict[str, list[Curve]], label: dict[str, str], given: dict[str, Resources]) -> None:
    """For each environment a line for each group: median core-hours over the return, with the span of its runs."""
    for axis, (id, own) in zip(figures.axes(figure, len(curves)), curves.items(), strict=True):
        low = min(float(curve.scores[curve.begin :].min()) for curve in own)
        goals = np.linspace(low, max(float(curve.scores[curve.begin :].max()) for curve in own), POINTS)
        names = list(dict.fromkeys(label[curve.run.name] for curve in own))[: len(figures.COLOURS)]
        for name in names:
            of_group = [curve for curve in own if label[curve.run.name] == name]
            rows = [[c.reached(goal) for goal in goals] for c in of_group]
            spent = np.stack([hours_at(c.run, np.array(row)) * given[c.run.name].cores
                              for c, row in zip(of_group, rows, strict=True)])  # fmt: skip
            middle = np.median(np.where(np.isfinite(spent), spent, np.inf), axis=0)
            (line,) = axis.plot(goals, np.where(np.isfinite(middle), middle, np.nan), label=name)
            if len(of_group) > 1:
                known = np.isfinite(spent).all(axis=0)
                axis.fill_between(goals[known], *(f(spent[:, known], axis=0) for f in (np.min, np.max)), alpha=0.15,
                                  color=line.get_color(), linewidth=0)  # fmt: skip
        games = "greedy games" if own[0].kind == "greedy" else f"{WINDOW} training games"
        axis.set(xlabel=f"mean return of {games}", ylabel="core-hours until it was reached", ylim=(0, None))
        axis.set_title(f"{id}: {names[0]}" if len(names) == 1 else id, fontsize="medium")
    figures.legend(figure)


def analyze(runs: Sequence[RecordedRun], target: float | None = None) -> Section:
    """What it cost to play so well. Raises NotRecorded where no run has games and a clock."""
    clocked = {run.name for run in runs if np.isfinite(hours_at(run, np.zeros(1))).all()}
    curves = {id: own for id, every in judged(runs).items() if (own := [c for c in every if c.run.name in clocked])}
    if not curves:
        raise NotRecorded(f"{runs[0].path} has no games with a time in the metrics; nothing says what they cost")
    label = {run.name: name for name, own in groups.by_setting(runs, "environment.").items() for run in own}
    given = {run.name: resources(run) for run in runs if run.name in clocked}
    rows = [row for own in curves.values() for goals in [levels(own, target)] for curve in own
            for row in costs(curve, label[curve.run.name], goals, given[curve.run.name])]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*KEYS, "run", *AMOUNTS])
    of_groups = medians(table)
    flat = [id for id in curves if id not in set(table["environment"])]
    unpriced = [f"{', '.join(flat)}: no return was better than those that the runs began with."] if flat else []
    used = pd.DataFrame([{"run": name, **asdict(own)} for name, own in given.items()])
    absent = [run.name for run in runs if run.name not in clocked]
    clockless = [f"{', '.join(absent)}: no metrics of rank 0, so no clock."] if absent else []
    return Section(
        "Cost of a score",
        (*sentences(of_groups), *unpriced, *energy(used), *clockless),
        "A return is reached when the mean of 100 training games, or of a greedy evaluation where all runs of an"
        " environment played these from the first half on, first is that. Hours: wall-clock of all attempts until then,"
        " with start-up and lost work, from the metrics of rank 0. Core-hours and GPU-hours: × what the run was given"
        " (SLURM's allocation or the machine's, where that was recorded; else the threads of all ranks, and a GPU for"
        " each rank that learns on one). Medians over all runs of a group: of a return that less than half of them"
        " reached there is none. Shaded: the span of the runs, where all reached it. Energy: what SLURM's accounting"
        " measured, else the counters of the whole hosts (RAPL, NVML), spread evenly over the run.",
        {"cost_of_a_score": lambda figure: draw(figure, curves, label, given)},
        {"cost_groups": of_groups, "cost_runs": table, "cost_resources": used},
    )  # fmt: skip


def sentences(table: pd.DataFrame) -> list[str]:
    """For each environment the cheapest group for the highest return that one reached in the median."""
    results = []
    for id, own in table.dropna(subset=["core_hours"]).groupby("environment", sort=False):
        highest = own[own["return"] == own["return"].max()].sort_values("core_hours")
        row, goal = highest.iloc[0], own["return"].max()
        others = "".join(f"; {x.group}: {x.core_hours:.3g}" for x in highest.iloc[1:3].itertuples())
        gpus = f" and {row.gpu_hours:.3g} GPU-hours" if row.gpu_hours else ""
        results.append(f"{id}: a mean return of {goal:g} took {row.group} {row.core_hours:.3g} core-hours{gpus} in the"
                       f" median ({row.reached} of {row.runs} runs reached it){others}.")  # fmt: skip
    return results


def energy(used: pd.DataFrame) -> list[str]:
    known = used["kilowatts"].notna()
    if known.all():
        return []
    return ["Energy is not known" + (f" of {(~known).sum()} runs" if known.any() else "") +
            ": neither SLURM's accounting nor a counter of the machine was recorded."]  # fmt: skip


if __name__ == "__main__":
    programs.main(analyze, __doc__, {"target": "return to look for [the job's, and four levels]"})
