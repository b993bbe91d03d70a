"""Learning curves over seeds: returns by env steps, frames, wall-clock and core-hours, and the part that succeeded.

A program to copy and edit: `python learning_curve.py RUN [RUN…] --out FOLDER [--target RETURN]`. Runs that differ in
their seeds only make one curve, the interquartile mean with a bootstrap interval; every environment of a mixture has
its own. Greedy evaluations, where runs played them, have a picture of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, groups, programs
from hpc_rl.analysis.progress import hours_at
from hpc_rl.analysis.resources import cores
from hpc_rl.analysis.runs import action_repeat
from hpc_rl.analysis.scores import WINDOW, Band, Curve, band, greedy, training
from hpc_rl.analysis.sections import NotRecorded, Section

GROUPS = len(figures.COLOURS)  # in a picture
PANELS = 6  # environments in a picture
Panels = dict[str, dict[str, list[Curve]]]
"""Environment -> label of a group -> the curves of its runs."""


def panels(curves: Sequence[Curve]) -> Panels:
    """Curves by environment, then by what distinguishes their runs besides the seed."""
    result: Panels = {}
    for id in dict.fromkeys(curve.environment for curve in curves):
        own = {curve.run.name: curve for curve in curves if curve.environment == id}
        grouped = groups.by_setting([curve.run for curve in own.values()])
        result[id] = {label: [own[run.name] for run in runs] for label, runs in grouped.items()}
    return result


def env_steps_of(curve: Curve) -> Any:
    return curve.steps


def hours(curve: Curve) -> Any:
    return hours_at(curve.run, curve.steps)


def core_hours(curve: Curve) -> Any:
    return hours(curve) * cores(curve.run)


def draw(
    figure: Any, curves: Panels, score: str, x_of: Callable[[Curve], Any], label: Callable[[Any, float], float]
) -> None:
    """A panel for each environment, a line with its interval for each group; ``label`` names the x axis."""
    shown = list(curves.items())[:PANELS]
    for axis, (id, grouped) in zip(figures.axes(figure, len(shown)), shown, strict=True):
        bands = {name: band(own, [x_of(curve) for curve in own]) for name, own in best(grouped).items()}
        factor = label(axis, max(x.x[-1] for x in bands.values()))
        for name, own in bands.items():
            seeds = len(grouped[name])
            draw_band(axis, own, f"{name} ({seeds} seeds)" if seeds > 1 else name, factor)
        axis.set(xlim=(0, None), ylabel=score)
        axis.set_title(f"{id}: {axis.get_lines()[0].get_label()}" if len(bands) == 1 else id, fontsize="medium")
    figures.legend(figure)


def draw_band(axis: Any, own: Band, name: str, factor: float) -> None:
    """Solid as far as all runs came, dotted where some were done and keep their last score."""
    whole = own.x <= own.whole
    (line,) = axis.plot(own.x[whole] * factor, own.middle[whole], label=name)
    axis.plot(own.x[~whole] * factor, own.middle[~whole], ":", color=line.get_color())
    axis.fill_between(own.x * factor, own.low, own.high, alpha=0.2, color=line.get_color(), linewidth=0)


def best(grouped: dict[str, list[Curve]]) -> dict[str, list[Curve]]:
    """The groups that a picture has colours for, in their order: those with the highest last scores."""
    last = {name: np.mean([curve.scores[-1] for curve in own]) for name, own in grouped.items()}
    kept = sorted(last, key=lambda name: -last[name])[:GROUPS]
    return {name: own for name, own in grouped.items() if name in kept}


def by_env_steps(axis: Any, most: float, repeat: int = 1) -> float:
    figures.env_steps(axis)
    if repeat > 1:
        from matplotlib.ticker import EngFormatter

        frames = axis.secondary_xaxis("top", functions=(lambda x: x * repeat, lambda x: x / repeat))
        frames.xaxis.set_major_formatter(EngFormatter(sep=""))
        frames.set_xlabel("frames")
    return 1.0


def by_core_hours(axis: Any, most: float) -> float:
    axis.set(xlabel="core-hours")
    return 1.0


def table(
    trained: Sequence[Curve], evaluated: Sequence[Curve], succeeded: Sequence[Curve], target: float | None
) -> pd.DataFrame:
    """A row for each run and environment: what it played, its last scores, and when it first had ``target``."""
    rows = []
    for curve in trained:
        goal, own = curve.run.job.budget.stop_at_return if target is None else target, {}
        greedy_of, success_of = (
            [x for x in curves if x.run is curve.run and x.environment == curve.environment]
            for curves in (evaluated, succeeded)
        )
        success = {x.kind == "greedy": x.scores[-1] for x in success_of}
        row = {
            "run": curve.run.name, "environment": curve.environment, "games": curve.total,
            "env_steps": int(curve.steps[-1]), "frames": int(curve.steps[-1]) * action_repeat(curve.run),
            "hours": hours(curve)[-1], "core_hours": core_hours(curve)[-1], "last_100": curve.scores[-1],
            "greedy": greedy_of[0].scores[-1] if greedy_of else np.nan, "from": curve.kind,
            "success_100": success.get(False, np.nan), "greedy_success": success.get(True, np.nan),
        }  # fmt: skip
        for kind, own in (("training", [curve]), ("greedy", greedy_of)):
            row[f"target_{kind}"] = own[0].reached(goal) if own and goal is not None else np.nan
        rows.append({**row, "target": np.nan if goal is None else goal})
    return pd.DataFrame(rows)


def summary(curves: Panels, kind: str, target: float | None) -> pd.DataFrame:
    """A row for each environment and group: the interval of its runs' last scores, and when they had the target."""
    rows = []
    for id, grouped in curves.items():
        for name, own in grouped.items():
            last = band(own, [curve.steps for curve in own])
            goal = own[0].run.job.budget.stop_at_return if target is None else target
            at = np.array([np.nan if goal is None else curve.reached(goal) for curve in own])
            row = {"environment": id, "group": name, "score": kind, "seeds": len(own), "env_steps": int(last.x[-1])}
            row |= {"iqm": last.middle[-1], "low": last.low[-1], "high": last.high[-1]}
            row |= {"target": np.nan if goal is None else goal, "reached": int(np.isfinite(at).sum())}
            median = np.median(np.where(np.isfinite(at), at, np.inf))  # of all runs, reached or not
            rows.append({**row, "median_env_steps_to_target": median if np.isfinite(median) else np.nan})
    return pd.DataFrame(rows)


def sentence(row: Any) -> str:
    """What a row of the summary says."""
    span = f" (95 %: {row.low:.4g} to {row.high:.4g})" if np.isfinite(row.low) else ""
    seeds = f"{row.seeds} seeds" if row.seeds > 1 else "1 seed, so no interval"
    games, _, success = row.score.partition(" ")
    what = f"the last {WINDOW} training games" if games == "training" else "greedy games"
    text = (
        f"{row.environment}, {row.group}: {success or 'mean return'} {row.iqm:.4g}{span} in {what} after "
        f"{row.env_steps:,} env steps"
    )
    if not np.isfinite(row.target):
        return f"{text} ({seeds})."
    median = row.median_env_steps_to_target
    after = f", in the median after {median:,.0f} env steps" if np.isfinite(median) else ""
    return f"{text} ({seeds}); {row.target:g} was reached by {row.reached}{after}."


def analyze(runs: Sequence[RecordedRun], target: float | None = None) -> Section:
    """Curves of training and greedy games. ``target`` is by default each job's stop_at_return. Raises NotRecorded."""
    trained, evaluated = training(runs), greedy(runs)
    if not trained and not evaluated:
        raise NotRecorded(f"{runs[0].path} has no finished episode yet; wait until the next segment is closed")
    curves, played = panels(trained), panels(evaluated)
    succeeded = {"training": training(runs, "success"), "greedy": greedy(runs, "success")}
    repeats = {action_repeat(curve.run) for curve in [*trained, *evaluated]}
    steps = partial(by_env_steps, repeat=repeats.pop() if len(repeats) == 1 else 1)
    pictures: dict[str, Callable[[Any], None]] = {}
    mean = f"mean return of the last {WINDOW} games"
    if trained:
        pictures["learning_curve"] = lambda figure: draw(figure, curves, mean, env_steps_of, steps)
        if all(np.isfinite(hours(curve)).all() for curve in trained):
            pictures["learning_curve_by_wall_clock"] = lambda f: draw(f, curves, mean, hours, figures.hours)
            if len({cores(curve.run) for curve in trained}) > 1:
                pictures["learning_curve_by_core_hours"] = lambda f: draw(f, curves, mean, core_hours, by_core_hours)
    if evaluated:
        pictures["greedy_evaluations"] = lambda f: draw(f, played, "mean return of greedy games", env_steps_of, steps)
    for games, own in succeeded.items():
        if own:
            text = f"success of {f'the last {WINDOW} training' if games == 'training' else games} games"
            pictures[f"success_of_{games}_games"] = partial(
                draw, curves=panels(own), score=text, x_of=env_steps_of, label=steps
            )
    of_runs = table(trained, evaluated, [*succeeded["training"], *succeeded["greedy"]], target)
    successes = [summary(panels(own), f"{games} success", None) for games, own in succeeded.items()]
    groups_table = pd.concat(
        [summary(curves, "training", target), summary(played, "greedy", target), *successes], ignore_index=True
    )
    return Section(
        "Learning curves",
        (*map(sentence, groups_table.itertuples()), *remarks(runs, trained, curves)),
        f"Score: mean raw return of the last {WINDOW} training games of a run in the order in which they ended, or of"
        " the newest greedy evaluation (metrics of rank 0), by env steps of the whole job. Line: interquartile mean"
        " over runs that differ in the seed only (of fewer than four the mean); band: 95 % percentile bootstrap"
        " interval, 2,000 samples of runs drawn anew. Dotted: not all runs came so far; those that were done keep their"
        " last score, and the line ends where the first of the others does. Frames: env steps × action repeat."
        " Wall-clock: all attempts of rank 0, with start-up and lost work, without pauses; core-hours:"
        " × the job's cores. Success: the part of those games that reached their goal, where the environment tells.",
        pictures, {"learning_curve_groups": groups_table, "learning_curve_runs": of_runs},
    )  # fmt: skip


def remarks(runs: Sequence[RecordedRun], trained: Sequence[Curve], curves: Panels) -> list[str]:
    """What is not as it usually is, a sentence each."""
    from_metrics = [curve.run.name for curve in trained if curve.kind == "metrics"]
    absent = [run.name for run in runs if run.name not in {curve.run.name for curve in trained}]
    more = [len(grouped) for grouped in curves.values() if len(grouped) > GROUPS]
    return [
        *([f"{', '.join(from_metrics)}: no recorded episodes; the curve is that of the metrics."] * bool(from_metrics)),
        *([f"{', '.join(absent)}: no finished training game yet."] * bool(absent)),
        *([f"Pictures show the {GROUPS} groups of {max(more)} with the highest last scores."] if more else []),
        *(
            [f"Pictures show {PANELS} of {len(curves)} environments; the tables show all."]
            if len(curves) > PANELS
            else []
        ),
    ]


if __name__ == "__main__":
    programs.main(analyze, __doc__, {"target": "return to look for [the job's budget.stop_at_return]"})
