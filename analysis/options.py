"""How often each goal was pursued and reached, by stage of training: of methods that choose goals, as h-DQN.

A program to copy and edit: `python options.py RUN [RUN…] --out FOLDER`. It reads the extras "ended" (an option ended
before this row) and "reached" (its goal is reached here), and where goals have numbers "pursued" (that goal).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.types import Array

ENDED, REACHED, PURSUED = "extras/ended", "extras/reached", "extras/pursued"
MOST_GOALS, MOST_RUNS = 100, 4  # counted one by one; panels of a picture


def numbered(run: RecordedRun) -> bool:
    """Whether each goal of a run is a whole number."""
    leaf = has(run).get(PURSUED)
    return leaf is not None and not leaf.shape and np.dtype(leaf.dtype).kind in "iu"


def counts(moves: Moves, numbered: bool) -> Sums:
    """Of one block, [STAGES, goals] how many options ended and how many reached their goal; goals that have no number
    are one. An option that ended its episode ends in the row of the last observation, which no move leaves."""
    before = np.concatenate([np.ones_like(moves.kept[:1]), moves.kept[:-1]])
    own = moves.leaves[ENDED].astype(bool) & (moves.kept | (~moves.leaves["valid"] & before))
    stage, reached = moves.stage()[own], moves.leaves[REACHED][own].astype(bool)
    goal = moves.leaves[PURSUED][own].clip(0, MOST_GOALS - 1) if numbered else np.zeros(len(stage), np.int64)
    return {"attempts": _by_stage(stage, goal), "successes": _by_stage(stage[reached], goal[reached])}


def _by_stage(stage: Array, goal: Array) -> Array:
    cells = np.bincount(stage * MOST_GOALS + goal.astype(np.int64), minlength=STAGES * MOST_GOALS)
    return cells.reshape(STAGES, MOST_GOALS)


def rows_of(name: str, part: Sums, numbered: bool) -> list[dict[str, Any]]:
    """A row for each goal that was pursued, and stage."""
    attempts, successes = part["attempts"], part["successes"]
    return [
        {"run": name, "goal": f"{goal}" if numbered else "all", "stage": NAMES[k], "attempts": int(attempts[k, goal])}
        | {"successes": int(successes[k, goal]), "success": successes[k, goal] / attempts[k, goal]}
        for goal in range(MOST_GOALS) for k in range(STAGES) if attempts[k, goal]
    ]  # fmt: skip


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Attempts and successes by goal and stage. Raises NotRecorded."""
    recorded = [run for run in runs if {ENDED, REACHED} <= set(has(run))]
    if not recorded:
        raise NotRecorded(
            f"{runs[0].path} has no recorded options (extras ended, reached); its method chooses no goals"
        )
    kinds = {run.name: numbered(run) for run in recorded}
    names = {run.name: [ENDED, REACHED, *([PURSUED] if kinds[run.name] else [])] for run in recorded}
    lazy = [total(run, names[run.name], partial(counts, numbered=kinds[run.name]), borders(run)) for run in recorded]
    parts = {run.name: part for run, part in zip(recorded, dask.compute(*lazy), strict=True)}
    rows = [row for name, part in parts.items() if part for row in rows_of(name, part, kinds[name])]
    if not rows:
        raise NotRecorded(f"no option of {recorded[0].path} has ended yet; let it train for longer")
    table = pd.DataFrame(rows)
    return Section(
        "Options",
        tuple(finding(name, own) for name, own in table.groupby("run", sort=False)),
        "Options that ended, by the goal that they pursued and by tenths of the job's env steps, and those among them"
        " whose goal was reached. An option ends with its goal, its episode, or at the method's limit; one that was"
        f" open at the end of a recording does not count. Goals from {MOST_GOALS - 1} on are one. Success depends on"
        " exploration, which falls while training goes on.",
        {"options": lambda figure: draw(figure, table)},
        {"success_by_goal": table},
    )


def finding(name: object, rows: pd.DataFrame) -> str:
    """The success of each goal in the last stage that it was pursued in."""
    last = rows.groupby("goal", sort=False).last()
    texts = [f"{goal}: {100 * row['success']:.0f} % of {row['attempts']}" for goal, row in last.iterrows()]
    more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
    return f"{name}: options that reached their goal at the end, by goal: {', '.join(texts[:8])}{more}."


def draw(figure: Any, table: pd.DataFrame) -> None:
    """Success by stage, a line for each goal; a panel for each run."""
    groups = list(table.groupby("run", sort=False))[:MOST_RUNS]
    axes = figures.axes(figure, len(groups))
    for axis, (name, rows) in zip(axes, groups, strict=True):
        for place, (goal, own) in enumerate(rows.groupby("goal", sort=False)):
            at = [(NAMES.index(stage) + 0.5) * 100 / STAGES for stage in own["stage"]]
            colour = figures.COLOURS[place % len(figures.COLOURS)]
            axis.plot(at, 100 * own["success"], "o-", color=colour, label=f"{goal}" if place < 10 else None)
        axis.set(xlabel="% of env steps", title=f"{name}", xlim=(0, 100), ylim=(0, 100))
        axis.legend(title="goal")
    axes[0].set(ylabel="options that reached their goal, %")


if __name__ == "__main__":
    programs.main(analyze, __doc__)
