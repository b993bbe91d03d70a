"""How strong policies of a game of two became: Elo and points against each opponent of their evaluations.

A program to copy and edit: `python matches.py RUN [RUN…] --out FOLDER`. It reads the metrics of rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.elo import Met, ratings


def opponents(run: RecordedRun) -> list[str]:
    """Names of the sets of arguments that a run was judged with, if each has an opponent."""
    sets = run.job.evaluate.arguments
    if not sets or not all("opponent" in x for x in sets):
        return []
    names = [" ".join(map(str, [x["opponent"], *(v for k, v in x.items() if k != "opponent")])) for x in sets]
    return names if len(set(names)) == len(names) else [f"{name} #{k}" for k, name in enumerate(names)]


def evaluations(run: RecordedRun) -> pd.DataFrame:
    """A row for each evaluation: env_steps of the first line that tells it, and points 0..1 against each opponent.

    Lines repeat the last evaluation; one that comes out as the one before is not told from it.
    """
    names, lines = opponents(run), progress(run)
    columns = ["greedy_return"] if len(names) == 1 else [f"greedy_return/{k}" for k in range(len(names))]
    if not names or not set(columns) <= set(lines):
        return pd.DataFrame()
    told = lines.dropna(subset=columns)
    fresh = (told[columns] != told[columns].shift()).any(axis=1)
    points = (1 + told.loc[fresh, columns].to_numpy(float)) / 2
    own = dict(zip(names, points.T, strict=True))
    return pd.DataFrame({"run": run.name, "env_steps": told.loc[fresh, "env_steps"], **own})


def rated(run: RecordedRun) -> pd.DataFrame:
    """The evaluations with elo, and half of its interval; that of the opponent "random", else of the first, is 0.

    All of a run's policies and opponents are rated together, from all their games.
    """
    table, games = evaluations(run), run.job.evaluate.episodes
    names = [name for name in table if name not in ("run", "env_steps")]
    zero = next((k for k, name in enumerate(names) if name.split()[0] == "random"), 0)
    met = [
        Met(len(names) + row, k, games * float(table[name].iloc[row]), games)
        for row in range(len(table))
        for k, name in enumerate(names)
    ]
    found = ratings(len(names) + len(table), met, zero)[len(names) :] if len(table) else []
    return table.assign(elo=[x.elo for x in found], half=[x.half for x in found])


def finding(name: str, table: pd.DataFrame) -> str:
    first, last = table.iloc[0], table.iloc[-1]
    apart = abs(last["elo"] - first["elo"]) > np.hypot(first["half"], last["half"])
    then, now = (f"{x['elo']:.0f} ± {x['half']:.0f} at {x['env_steps']:,.0f}" for x in (first, last))
    return f"{name}: Elo {then} env steps and {now}, {'' if apart else 'not '}apart by more than their intervals."


def draw(figure: Any, tables: dict[str, pd.DataFrame]) -> None:
    """Elo above, with its interval; points against each opponent of the first run below."""
    above, below = figure.subplots(2, 1, sharex=True)
    for name, table in list(tables.items())[: len(figures.COLOURS)]:
        (line,) = above.plot(table["env_steps"], table["elo"], label=name)
        low, high = table["elo"] - table["half"], table["elo"] + table["half"]
        above.fill_between(table["env_steps"], low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    first = next(iter(tables.values()))
    for opponent in [x for x in first if x not in ("run", "env_steps", "elo", "half")]:
        below.plot(first["env_steps"], first[opponent], "--", label=opponent)
    above.set(ylabel="Elo")
    below.set(ylabel="points", ylim=(-0.02, 1.02))
    figures.env_steps(below)
    figures.legend(figure)


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Ratings of each run that was judged in matches. Raises NotRecorded."""
    tables = {run.name: table for run in runs if len(table := rated(run))}
    if not tables:
        raise NotRecorded(f"{runs[0].path} was not judged in matches; give evaluate.arguments an opponent each")
    return Section(
        "Strength in matches",
        tuple(finding(name, table) for name, table in tables.items()),
        "Greedy evaluations of rank 0's metrics; points are 1 for a win and ½ for a draw. Elo by Bradley and Terry's"
        " model over all evaluations of a run, one drawn game more for each policy and opponent; the intervals are of"
        " 95 %, with the opponent random, else the first, fixed at 0.",
        {"strength_in_matches": lambda figure: draw(figure, tables)},
        {"matches": pd.concat(list(tables.values()), ignore_index=True)},
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
