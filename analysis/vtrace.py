"""Importance ratios over training: V-trace's ratio and its clips, or PPO's, and how they go with the policy lag.

A program to copy and edit: `python vtrace.py RUN [RUN…] --out FOLDER`. It reads what the method logged: moves record
the log-probability of the acting weights only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hpc_rl.analysis import RecordedRun, figures, programs, progress
from hpc_rl.analysis.halves import stage
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import STAGES

METRICS = {
    "rho": "V-trace: mean clipped ratio min(ρ̄, π/μ)",
    "clipped": "V-trace: share of moves with π/μ > 1.01 ρ̄",
    "clip_fraction": "PPO: share of moves with |π/π_old − 1| > ε",
    "kl": "PPO: KL(π_old ‖ π) (nat)",
}
SMOOTH = 9  # lines behind a point of the pictures
RUNS = len(figures.COLOURS)


def lines(run: RecordedRun) -> pd.DataFrame:
    """The metric lines of rank 0 that have a ratio; empty where the method has none, or takes late data for fresh."""
    table = progress(run)
    names = [name for name in METRICS if name in table]
    if not names or run.job.method.get("correction") == "none":
        return pd.DataFrame()
    return table.dropna(subset=names, how="all").reset_index(drop=True)


def by_stage(run: RecordedRun, table: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage: means of what was logged, of the lag, and with ρ̄ = 1 the total variation distance."""
    end = table["env_steps"].max()
    names = [name for name in (*METRICS, "policy_lag", "entropy") if name in table]
    means = table.groupby(stage(table["env_steps"].to_numpy(), end))[names].mean()
    means.insert(0, "env_steps", ((means.index + 1) * end / STAGES).astype(int))
    means.insert(0, "stage", means.index)
    means.insert(0, "run", run.name)
    if "rho" in means and run.job.method.get("rho_bar") == 1.0:
        means["total_variation"] = 1 - means["rho"]
    return means


def whole(run: RecordedRun, table: pd.DataFrame) -> dict[str, Any]:
    """Means over the run, and the rank correlation of the ratio with the lag, line by line."""
    row: dict[str, Any] = {"run": run.name, "rho_bar": run.job.method.get("rho_bar", np.nan)}
    row |= {"c_bar": run.job.method.get("c_bar", np.nan), "lines": len(table)}
    row |= {name: table[name].mean() if name in table else np.nan for name in METRICS}
    row["rho_10"] = table["rho"].quantile(0.1) if "rho" in table else np.nan
    pair = table[["rho", "policy_lag"]].dropna() if {"rho", "policy_lag"} <= set(table) else pd.DataFrame()
    varies = len(pair) > 2 and (pair.nunique() > 1).all()
    row["correlation_with_lag"] = stats.spearmanr(pair["rho"], pair["policy_lag"]).statistic if varies else np.nan
    return row


def draw(figure: Any, tables: dict[str, pd.DataFrame]) -> None:
    """A panel for each metric, a line for each run: the median of `SMOOTH` lines."""
    names = [name for name in METRICS if any(name in table for table in tables.values())]
    colour = dict(zip(tables, figures.COLOURS, strict=False))
    for axis, name in zip(figures.axes(figure, len(names)), names, strict=True):
        for run, table in tables.items():
            if name in table and run in colour:
                axis.plot(table["env_steps"], table[name].rolling(SMOOTH, 1, center=True).median(), color=colour[run],
                          label=run)  # fmt: skip
        figures.env_steps(axis)
        axis.set_title(METRICS[name], fontsize="medium")
        if name != "rho":
            axis.set_ylim(0, None)
    figures.legend(figure)


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Ratios over training. Raises NotRecorded where no method logged any."""
    tables = {run.name: table for run in runs if len(table := lines(run))}
    if not tables:
        raise NotRecorded(f"{runs[0].path} has no importance ratios in its metrics; IMPALA and PPO log them")
    own = [run for run in runs if run.name in tables]
    rows = pd.DataFrame([whole(run, tables[run.name]) for run in own])
    stages = pd.concat([by_stage(run, tables[run.name]) for run in own], ignore_index=True)
    unknown = [row.run for row in rows.itertuples() if np.isfinite(row.rho) and not np.isfinite(row.clipped)]
    older = [f"{', '.join(unknown)}: made by a version that did not log how many ratios were clipped."]
    return Section(
        "Importance ratios",
        (*map(sentence, rows.itertuples()), *older * bool(unknown)),
        "What the learner logged at each update, as rank 0's metric lines have it: means over the valid moves of all"
        " passes and minibatches, so that several passes over a batch make ratios differ from 1 without any lag. With"
        " ρ̄ = 1 the mean clipped ratio is 1 − the total variation distance of the learning and the acting policy, over"
        " the states that were met. Recorded moves hold log μ(a|x) of the acting weights, which bounds a ratio by"
        " 1/μ; π of the learning weights is not kept, so the distribution of ratios, the traces c and targets of single"
        " moves cannot be computed afterwards.",
        {"importance_ratios": lambda figure: draw(figure, tables)},
        {"importance_ratios_runs": rows, "importance_ratios_stages": stages},
    )  # fmt: skip


def sentence(row: Any) -> str:
    if not np.isfinite(row.rho):
        return f"{row.run}: PPO clips {row.clip_fraction:.1%} of the moves, KL {row.kl:.3g} nat in the mean."
    apart = f", so that π and μ are {1 - row.rho:.1%} apart in total variation" if row.rho_bar == 1 else ""
    clipped = f"; {row.clipped:.1%} of the ratios are clipped" if np.isfinite(row.clipped) else ""
    lag = (
        ""
        if not np.isfinite(row.correlation_with_lag)
        else f"; rank correlation with lag {row.correlation_with_lag:+.2f}"
    )
    return f"{row.run}: V-trace's ratio is {row.rho:.3f} in the mean{apart}{clipped}{lag}."


if __name__ == "__main__":
    programs.main(analyze, __doc__)
