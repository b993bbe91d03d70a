"""What a method paid itself for novelty beside what the environment paid: intrinsic and extrinsic returns by env steps.

A program to copy and edit: `python bonuses.py RUN [RUN…] --out FOLDER`. It reads the metrics of rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES

STREAMS = ("intrinsic_return", "extrinsic_return")
MEANS = (*STREAMS, "bonus", "intrinsic_reward", "extrinsic_reward")


def logged(run: RecordedRun) -> pd.DataFrame:
    """The lines of a run's metrics that have both returns; empty where there are none."""
    lines = progress(run)
    return lines.dropna(subset=list(STREAMS)) if set(STREAMS) <= set(lines) else lines.iloc[:0]


def by_stage(name: str, lines: pd.DataFrame) -> pd.DataFrame:
    """A row for each tenth of the env steps that has lines: the means of what they say."""
    stage = np.clip(lines["env_steps"] * STAGES / lines["env_steps"].max(), 0, STAGES - 1).astype(int)
    rows = lines[[x for x in MEANS if x in lines]].groupby(stage).mean()
    return pd.DataFrame({"run": name, "stage": [NAMES[k] for k in rows.index]}).join(rows.reset_index(drop=True))


def finding(name: Any, rows: pd.DataFrame) -> str:
    """How much novelty was left at the end, and whether the environment paid by then."""
    intrinsic, extrinsic = (rows[x] for x in STREAMS)
    peak = intrinsic.abs().max()
    left = f"{intrinsic.iloc[-1] / peak:.0%} of its largest stage" if peak > 0 else "0 throughout"
    return (
        f"{name}: the intrinsic return is {intrinsic.iloc[-1]:.3g} in the last stage, {left}; the extrinsic return went"
        f" from {extrinsic.iloc[0]:.3g} to {extrinsic.iloc[-1]:.3g}."
    )


def draw(figure: Any, runs: dict[str, pd.DataFrame]) -> None:
    """Intrinsic above extrinsic returns."""
    panels = figure.subplots(2, 1, sharex=True)
    for panel, stream in zip(panels, STREAMS, strict=True):
        for name, lines in list(runs.items())[: len(figures.COLOURS)]:
            panel.plot(lines["env_steps"], lines[stream], label=name)
        panel.set(ylabel=stream.replace("_", " "))
    figures.env_steps(panels[1])
    figures.legend(figure)


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Both streams of reward by stage. Raises NotRecorded."""
    lines = {run.name: own for run in runs if len(own := logged(run))}
    if not lines:
        raise NotRecorded(f"{runs[0].path} logs no intrinsic return; run a method that pays for novelty, as rnd")
    table = pd.concat([by_stage(name, own) for name, own in lines.items()], ignore_index=True)
    return Section(
        "Intrinsic and extrinsic returns",
        tuple(finding(name, rows) for name, rows in table.groupby("run", sort=False)),
        "Metrics of rank 0, by tenths of the env steps that they reach. Returns are those that values are learned from,"
        " discounted by each stream's own γ; intrinsic rewards are in units of the running deviation of their filtered"
        " sums, and a bonus is what they were before that.",
        {"intrinsic_and_extrinsic_returns": lambda figure: draw(figure, lines)},
        {"streams_by_stage": table},
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
