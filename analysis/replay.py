"""Replay over training: age, priority and chance of the items that were drawn, what was lost, and draws per insertion.

A program to copy and edit: `python replay.py RUN [RUN…] --out FOLDER`. It reads the metrics of the ranks that hold the
replay, and compares the draws with the job's setting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl import job as jobs
from hpc_rl.analysis import RecordedRun, figures, programs, progress
from hpc_rl.analysis.halves import stage
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import STAGES
from hpc_rl.config import BadJob
from hpc_rl.storage.metrics import series
from hpc_rl.storage.untrusted import Unreadable

LEAVES = {"age": "age of drawn items (moves)", "priority": "priority of drawn items", "chance": "P(item) / smallest P"}
QUANTILES = (10, 50, 90)
RUNS = len(figures.COLOURS)


def lines(run: RecordedRun) -> pd.DataFrame:
    """The metric lines of all ranks with a replay, by the env steps of the job when they were written."""
    clock = progress(run)
    tables = []
    for path in sorted((run.path / "metrics").glob("*.jsonl")):
        own = _series(path)
        if own and len(clock):
            table = pd.DataFrame(own)
            table["rank"] = path.stem
            table["env_steps"] = np.interp(table["time"], clock["time"], clock["env_steps"])
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _series(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError, Unreadable):
        return [line for line in series(path) if line.get("replay/age_50") is not None and "time" in line]
    return []


def by_stage(run: RecordedRun, table: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage: the mean of each quantile over lines and ranks."""
    end = progress(run)["env_steps"].max()
    names = [f"replay/{leaf}_{q}" for leaf in LEAVES for q in QUANTILES if f"replay/{leaf}_{q}" in table]
    means = table.groupby(stage(table["env_steps"].to_numpy(), end))[names].mean()
    means.columns = [name.removeprefix("replay/") for name in names]
    means.insert(0, "env_steps", ((means.index + 1) * end / STAGES).astype(int))
    means.insert(0, "stage", means.index)
    means.insert(0, "run", run.name)
    return means


def drawn(run: RecordedRun, table: pd.DataFrame) -> dict[str, Any]:
    """What the run drew for each env step that it inserted beyond the minimum, against the job, and what was lost."""
    last = progress(run).iloc[-1]
    row: dict[str, Any] = {"run": run.name, "env_steps": int(last["env_steps"]), "updates": last.get("updates", np.nan)}
    row |= {"drawn": np.nan, "drawn_per_insertion": np.nan, "setting": np.nan, "deviation": np.nan}
    with contextlib.suppress(BadJob):
        experience = jobs.experience(run.job)
        items = experience.items[0]
        beyond = row["env_steps"] - experience.min_size
        row["drawn"], row["setting"] = row["updates"] * items.batch_size, items.samples_per_insert
        if beyond > 0:
            row["drawn_per_insertion"] = row["drawn"] / beyond
            row["deviation"] = row["drawn_per_insertion"] / row["setting"] - 1
    lost = {name: f"replay/{name}" for name in ("dropped", "rejected")}
    per_rank = table.groupby("rank")
    row |= {name: float(per_rank[leaf].max().sum()) if leaf in table else 0.0 for name, leaf in lost.items()}
    newest = table[table["env_steps"] >= 0.9 * row["env_steps"]]
    return row | {f"age_{q}": newest[f"replay/age_{q}"].mean() for q in QUANTILES}


def draw(figure: Any, tables: dict[str, pd.DataFrame]) -> None:
    """A panel for each leaf: medians over env steps, with the middle 80 % of a single run; mean of several ranks."""
    leaves = [leaf for leaf in LEAVES if any(f"replay/{leaf}_50" in table for table in tables.values())]
    panels = figures.axes(figure, len(leaves), len(leaves))
    for axis, leaf in zip(panels, leaves, strict=True):
        for name, table in list(tables.items())[:RUNS]:
            if f"replay/{leaf}_50" not in table:
                continue
            low, middle, high = (_smooth(table, f"replay/{leaf}_{q}") for q in QUANTILES)
            (line,) = axis.plot(middle.index, middle, label=name)
            if len(tables) == 1:
                axis.fill_between(middle.index, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        figures.env_steps(axis)
        axis.set_title(LEAVES[leaf], fontsize="medium")
        axis.set(xlim=(0, None)) if leaf != "age" else axis.set(xlim=(0, None), ylim=(0, None))
        if leaf != "age":
            axis.set_yscale("log")
    figures.legend(figure)


def _smooth(table: pd.DataFrame, name: str) -> Any:
    """Mean over ranks at 200 places along the run."""
    place = (table["env_steps"] / max(table["env_steps"].max(), 1) * 200).astype(int)
    return table.groupby(place)[[name, "env_steps"]].mean().set_index("env_steps")[name]


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Replay over training. Raises NotRecorded where no rank held one."""
    tables = {run.name: table for run in runs if len(table := lines(run))}
    if not tables:
        raise NotRecorded(f"{runs[0].path} has no metrics of a replay; its method learns from fresh moves, or is young")
    own = [run for run in runs if run.name in tables]
    rows = pd.DataFrame([drawn(run, tables[run.name]) for run in own])
    stages = pd.concat([by_stage(run, tables[run.name]) for run in own], ignore_index=True)
    return Section(
        "Replay",
        tuple(map(sentence, rows.itertuples())),
        "Age, priority and chance: quantiles of the last 32 batches, as every rank with a replay logged them, averaged"
        " over ranks; the median, and for a single run the middle 80 %. Age: moves between an item and the newest one"
        " of its column; chance: probability over that of the least probable item. Draws per insertion: updates × batch"
        " size over env steps beyond min_size, against samples_per_insert of the job. Dropped: priorities whose item"
        " had been overwritten when they came; rejected: those that were no finite number ≥ 0.",
        {"replay": lambda figure: draw(figure, tables)}, {"replay_runs": rows, "replay_stages": stages},
    )  # fmt: skip


def sentence(row: Any) -> str:
    text = f"{row.run}: the median of drawn items was {row.age_50:,.0f} moves old in the last tenth"
    text += f" (middle 80 %: {row.age_10:,.0f} to {row.age_90:,.0f})"
    if np.isfinite(row.deviation):
        text += f"; {row.drawn_per_insertion:.4g} draws per insertion, set {row.setting:g} ({row.deviation:+.1%})"
    lost = [
        f"{count:,.0f} priorities {name}"
        for name, count in (("dropped", row.dropped), ("rejected", row.rejected))
        if count
    ]
    return f"{text}; {' and '.join(lost) or 'no priority was lost'}."


if __name__ == "__main__":
    programs.main(analyze, __doc__)
