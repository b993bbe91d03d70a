"""Where a high level set its goals and where the low one was, by thirds of training, and what was left of goals.

A program to copy and edit: `python goals.py RUN [RUN…] --out FOLDER`. It reads what policies of two levels remember of
every move: the goal as an offset, and the place that it pointed to before the move.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.sections import Draw, NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.storage.recorded import moves
from hpc_rl.types import Array

GOAL, PLACE, SET = LEAVES = ("extras/goal", "extras/target", "extras/decides")
THIRDS, SIDE = 3, 40  # of training; cells of a map each way
MAPS = ("asked", "reached")


def plane(places: Array) -> Array:
    """[n, 2] the first two entries of places [n, k]; the second is 0 where there is one only."""
    flat = np.nan_to_num(places.reshape(len(places), prod(places.shape[1:]))[:, :2].astype(np.float64))
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def frame(run: RecordedRun) -> Array:
    """[2, 2] lowest and highest of both entries of the places in the first and the last segment, a little wider."""
    of_ends = [moves(segment, PLACE) for segment in (run.segments[0], run.segments[-1])]
    places = np.concatenate([plane(x.reshape(-1, x.shape[-1])) for x in of_ends])
    low, high = places.min(0), places.max(0)
    margin = np.maximum(0.05 * (high - low), 1e-3)
    return np.stack([low - margin, high + margin])


def sums(block: Moves, edges: Array) -> Sums:
    """Of one block: maps [3, SIDE, SIDE], and by stage how many goals were set, how long they were, and what was left
    of them at the other moves, from where they stand to where the low level is."""
    stage, fresh, goal = block.stage()[block.kept], block.of(SET), block.of(GOAL).astype(np.float64)
    length = np.sqrt((goal.reshape(len(goal), -1) ** 2).sum(1))
    standing = ~fresh
    place, offset = plane(block.of(PLACE)[standing]), plane(goal[standing])
    part: Sums = {
        name: cells(x, stage[standing] * THIRDS // STAGES, edges)
        for name, x in zip(MAPS, (place, place - offset), strict=True)
    }
    for name, own in (("set", fresh), ("standing", standing)):
        part[name] = np.bincount(stage[own], minlength=STAGES)
        part[f"{name}_length"] = np.bincount(stage[own], length[own], STAGES)
    return part


def cells(places: Array, third: Array, edges: Array) -> Array:
    """Counts [3, SIDE, SIDE] of places [n, 2] in thirds [n], x first; what lies outside counts at the rim."""
    share = (places - edges[0]) / (edges[1] - edges[0])
    x, y = (share * SIDE).astype(np.int64).clip(0, SIDE - 1).T
    return np.bincount((third * SIDE + x) * SIDE + y, minlength=THIRDS * SIDE**2).reshape(THIRDS, SIDE, SIDE)


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Maps of goals, and their lengths by stage. Raises NotRecorded."""
    recorded = [run for run in runs if all(name in has(run) for name in LEAVES)]
    if not recorded:
        raise NotRecorded(f"{runs[0].path} has no goals of two levels; record a method that sets them, as hiro")
    edges = {run.name: frame(run) for run in recorded}
    lazy = [total(run, LEAVES, partial(sums, edges=edges[run.name]), borders(run)) for run in recorded]
    parts = {run.name: part for run, part in zip(recorded, dask.compute(*lazy), strict=True) if part}
    table = pd.DataFrame([row for name, part in parts.items() for row in rows_of(name, part)])
    return Section(
        "Goals",
        tuple(finding(name, rows) for name, rows in table.groupby("run", sort=False)),
        "All recorded moves that count. A goal is where it points to: asked are those places, and reached is where the"
        " low level was, at every move but those that set a goal; both by the first two entries of a position. Left is"
        " the distance between the two. Darker cells hold more moves, on a logarithmic scale.",
        {f"goals_of_{name}": drawn(part, edges[name]) for name, part in parts.items()},
        {"goals_by_stage": table},
    )


def rows_of(name: str, part: Sums) -> list[dict[str, Any]]:
    """A row for each stage that has goals."""
    return [
        {"run": name, "stage": NAMES[k], "goals": int(part["set"][k]), "length": part["set_length"][k] / part["set"][k],
         "left": part["standing_length"][k] / max(part["standing"][k], 1)}
        for k in range(STAGES) if part["set"][k]
    ]  # fmt: skip


def finding(name: Any, rows: pd.DataFrame) -> str:
    """How far goals were set and how much of them was left, at the beginning and at the end."""
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"{name}: {rows['goals'].sum():,} goals, {first['length']:.3g} long at the beginning and {last['length']:.3g}"
        f" at the end; {first['left']:.3g} and {last['left']:.3g} were left of them while they stood."
    )


def drawn(part: Sums, edges: Array) -> Draw:
    """Maps of what was asked above those of what was reached, a column for each third."""
    extent = (edges[0, 0], edges[1, 0], edges[0, 1], edges[1, 1])

    def draw(figure: Any) -> None:
        panels = figures.axes(figure, len(MAPS) * THIRDS, THIRDS, 3.0, 3.0)
        for panel, (name, k) in zip(panels, [(name, k) for name in MAPS for k in range(THIRDS)], strict=True):
            counts = part[name][k].T
            panel.imshow(np.log1p(counts), origin="lower", extent=extent, cmap="Blues", aspect="auto")
            panel.set(title=f"{name}, {['first', 'second', 'last'][k]} third")
            panel.grid(False)

    return draw


if __name__ == "__main__":
    programs.main(analyze, __doc__)
