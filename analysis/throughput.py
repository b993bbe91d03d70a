"""Where the time of runs went: env steps per second, and each role's share of work, by host.

A program to copy and edit: `python throughput.py RUN [RUN…] --out FOLDER`. It reads the metrics that every rank wrote,
and names the role that the others wait for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs, progress
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.storage.metrics import series
from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.untrusted import Unreadable

ACTIVITIES = ("step", "infer", "learn", "record", "send", "wait", "other")
WAITS = 0.1  # of a role's time, below which it does not count as waiting
BUSY = ("step", "infer", "learn", "record")  # a rank that does these is not waiting for another one


def shares(run: RecordedRun) -> pd.DataFrame:
    """A row for each rank: role, host, hours, and the share of its time by activity, weighted by time."""
    hosts = {record["role"]: record["host"] for record in rank_records(RunDir(run.path))}
    rows = []
    for path in sorted((run.path / "metrics").glob("*.jsonl")):
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError, Unreadable):
            lines = [line for line in series(path) if any(f"time/{name}" in line for name in ACTIVITIES)]
        if len(lines) < 2:
            continue
        spans = np.diff([line["time"] for line in lines])
        spans = np.where(np.diff([line.get("attempt") or 0 for line in lines]) == 0, spans, 0.0)
        share = {n: float(np.sum([x.get(f"time/{n}") or 0.0 for x in lines[1:]] * spans)) for n in ACTIVITIES}
        total = max(sum(share.values()), 1e-9)
        role, host = path.stem.rpartition("-")[0], hosts.get(path.stem, "")
        rows.append({"run": run.name, "rank": path.stem, "role": role, "host": host, "hours": spans.sum() / 3600}
                    | {name: x / total for name, x in share.items()})  # fmt: skip
    return pd.DataFrame(rows)


def bottleneck(table: pd.DataFrame) -> str:
    """The sentence that names what one run's ranks wait for, or that none of them does."""
    by_role = table.groupby("role")[list(ACTIVITIES)].mean()
    busy = by_role[list(BUSY)].sum(axis=1).sort_values()
    role = str(busy.index[-1])
    activity = str(by_role.loc[role, list(BUSY)].astype(float).idxmax())
    words = {"step": "stepping environments", "infer": "inference", "learn": "learning", "record": "recording"}
    others = ", ".join(f"{name} waits {by_role.loc[name, 'wait']:.0%}" for name in by_role.index if name != role)
    if by_role["wait"].max() < WAITS:
        total = table[list(BUSY)].mul(table["hours"], axis=0).sum() / table["hours"].sum()
        share, name = total.max(), words[str(total.astype(float).idxmax())]
        return f"{table['run'].iloc[0]}: no role waits for another; of the ranks' time {share:.0%} goes to {name}."
    main = f"{table['run'].iloc[0]}: the bottleneck is {words[activity]} on {role}, busy for {busy.iloc[-1]:.0%}"
    return main + (f" of its time ({others})." if others else " of its time.")


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Rates over env steps, and the split of time by rank. Raises NotRecorded."""
    tables = [table for run in runs if len(table := shares(run))]
    if not tables:
        raise NotRecorded(f"{runs[0].path} has no metrics with times of activities; let it run for a minute")
    split = pd.concat(tables, ignore_index=True)
    curves = {run.name: progress(run) for run in runs}

    def draw_rates(figure: Any) -> None:
        axis = figure.subplots()
        for name, curve in curves.items():
            if "env_steps_per_s" in curve:
                axis.plot(curve["env_steps"], curve["env_steps_per_s"].rolling(9, 1, center=True).median(), label=name)
        figures.env_steps(axis)
        axis.set(ylabel="env steps per second", ylim=(0, None))
        axis.legend()

    def draw_split(figure: Any) -> None:
        axis = figure.subplots()
        labels = split["rank"] if len(runs) == 1 else split["run"] + ": " + split["rank"]
        left = np.zeros(len(split))
        for activity in ACTIVITIES:
            axis.barh(labels, split[activity], left=left, label=activity)
            left += split[activity].to_numpy()
        axis.invert_yaxis()
        axis.set(xlabel="share of the rank's time", xlim=(0, 1))
        axis.grid(False)
        figure.legend(loc="outside upper center", ncols=len(ACTIVITIES))

    rates = [
        {"run": name, "env_steps": int(curve["env_steps"].iloc[-1]), "hours": curve["training_s"].iloc[-1] / 3600,
         "env_steps_per_s": curve["env_steps"].iloc[-1] / max(curve["training_s"].iloc[-1], 1e-9)}
        for name, curve in curves.items() if len(curve)
    ]  # fmt: skip
    return Section(
        "Throughput",
        tuple(bottleneck(table) for table in tables),
        "Rates: rank 0's env steps between two metric lines over the seconds between them, as the median of nine lines."
        " Shares: each rank's seconds by activity over all its lines, weighted by the time between them. The bottleneck"
        " is the role that steps, infers, learns or records for the largest share of its time.",
        {"env_steps_per_second": draw_rates, "time_by_activity": draw_split},
        {"rates": pd.DataFrame(rates), "time_split": split},
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
