"""What a model predicted of an episode before it began, with its bands, against what came: of methods that plan ahead.

A program to copy and edit: `python forecasts.py RUN [RUN…] --out FOLDER`. It reads the extras "predicted_mean" and
"predicted_std" of each move, which are of its observation and 0 where nothing was predicted, as PILCO records them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.types import Array

MEAN, STD = "extras/predicted_mean", "extras/predicted_std"
LEAVES = ("observation", "first", MEAN, STD)
MOST_EPISODES, MOST_ENTRIES = 5, 4  # panels of a picture, across and down


def rows_of(block: Moves) -> Sums:
    """The moves that count, one below the other: column, env step, whether an episode opens, then observation, mean and
    deviation of what was predicted [D] each."""
    step = block.step[block.kept]
    column = np.broadcast_to(block.column, block.kept.shape)[block.kept]
    keys = np.stack([column, step, block.of("first")], 1).astype(np.float64)
    return {"rows": [np.concatenate([keys, *(block.of(name) for name in ("observation", MEAN, STD))], 1)]}


def episodes(parts: Sequence[Array]) -> list[Array]:
    """[moves, 3, D] of every episode whose moves were predicted: observed, mean, deviation; in the order of columns
    and env steps."""
    rows = np.concatenate(parts)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    new_column = np.diff(rows[:, 0], prepend=rows[0, 0] - 1) != 0
    cuts = np.flatnonzero((rows[:, 2] > 0) | new_column)[1:]
    whole = [part[:, 3:].reshape(len(part), 3, -1) for part in np.split(rows, cuts)]
    known = [part[(part[:, 2] > 0).any(-1)] for part in whole]
    return [part for part in known if len(part)]


def row_of(name: str, number: int, episode: Array) -> dict[str, Any]:
    """How far an episode's observations were from what had been predicted, in deviations."""
    observed, mean, std = episode[:, 0], episode[:, 1], np.maximum(episode[:, 2], 1e-12)
    away = np.abs(observed - mean) / std
    row = {"run": name, "episode": number, "moves": len(episode)}
    return row | {"within_two_std": float((away <= 2).mean()), "largest_in_std": float(away.max())}


def draw(figure: Any, chosen: Sequence[tuple[int, Array]]) -> None:
    """Observed lines in bands of two deviations: an episode across, an entry of the observation down."""
    entries = min(chosen[0][1].shape[-1], MOST_ENTRIES)
    panels = figure.subplots(entries, len(chosen), squeeze=False, sharex=True)
    for column, (number, episode) in zip(panels.T, chosen, strict=True):
        column[0].set_title(f"episode {number}")
        column[-1].set_xlabel("move")
        for entry, panel in enumerate(column):
            observed, mean, std = (episode[:, k, entry] for k in range(3))
            move = np.arange(len(episode))
            panel.fill_between(move, mean - 2 * std, mean + 2 * std, alpha=0.3, color=figures.COLOURS[0], linewidth=0)
            panel.plot(move, mean, "--", color=figures.COLOURS[0], label="predicted, ± 2 deviations")
            panel.plot(move, observed, color=figures.COLOURS[1], label="observed")
    for entry, panel in enumerate(panels[:, 0]):
        panel.set_ylabel(f"entry {entry}")
    figures.legend(figure)


def chosen_of(own: Sequence[Array]) -> list[tuple[int, Array]]:
    """At most `MOST_EPISODES`, evenly from the first to the last, with their numbers."""
    at = np.unique(np.linspace(0, len(own) - 1, MOST_EPISODES).round().astype(int))
    return [(int(k) + 1, own[k]) for k in at]


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Predictions against what came, by episode. Raises NotRecorded."""
    recorded = [run for run in runs if {MEAN, STD} <= set(has(run)) and len(has(run)["observation"].shape) == 1]
    if not recorded:
        raise NotRecorded(
            f"{runs[0].path} has no predicted observations; run a method that plans with a model, as pilco"
        )
    sums = dask.compute(*(total(run, LEAVES, rows_of) for run in recorded))
    known = {run.name: episodes(x["rows"]) for run, x in zip(recorded, sums, strict=True) if x}
    known = {name: own for name, own in known.items() if own}
    if not known:
        raise NotRecorded(f"no episode of {recorded[0].path} was predicted yet; let it train for longer")
    table = pd.DataFrame([row_of(name, k + 1, x) for name, own in known.items() for k, x in enumerate(own)])
    return Section(
        "Predicted and real episodes",
        tuple(finding(name, rows) for name, rows in table.groupby("run", sort=False)),
        "Planned episodes, numbered from the first. What was predicted of each observation was fixed before its episode"
        " began and holds the noise of observing; where the model is right, 95 % lie within two deviations.",
        {f"predicted_{name}": lambda figure, own=own: draw(figure, chosen_of(own)) for name, own in known.items()},
        {"predictions_by_episode": table},
    )


def finding(name: object, rows: pd.DataFrame) -> str:
    """The share within two deviations, of the first episode and of the last."""
    first, last = rows["within_two_std"].iloc[[0, -1]]
    return (
        f"{name}: of {len(rows)} planned episodes, {100 * first:.0f} % of the first one's observations lie within two"
        f" deviations of what was predicted, and {100 * last:.0f} % of the last one's."
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
