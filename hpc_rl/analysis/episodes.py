"""The episode table: a row for every recorded episode of all runs, as a Dask dataframe."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from hpc_rl import job as jobs
from hpc_rl.analysis.pace import Pace, job_steps, pace
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.config import BadJob
from hpc_rl.storage.recorded import ends
from hpc_rl.storage.segments import Limits, Segment
from hpc_rl.types import Array, Tree

_TOGETHER = 16  # segments that one task reads
TOGETHER = ("solo", "allreduce")
"""Topologies whose ranks act by the weights that they have just learned: nothing is late."""
COLUMNS = {
    "run": "str", "column": "int64", "attempt": "int64", "start": "int64", "end": "int64", "return": "float64",
    "length": "int64", "success": "float64", "env_steps": "int64", "version": "int64", "lag": "float64",
}  # fmt: skip


def episodes(runs: Sequence[RecordedRun]) -> dd.DataFrame:
    """One row for each kept episode, in the order of segments; files are read when it is computed, each once.

    run, column, attempt; start and end: the column's env steps before its first and after its last move; return (raw),
    length (moves), success (NaN where unknown); env_steps of the whole job at its end (`analysis.pace`); version:
    the learner update of the acting weights at its end; lag: updates that the learner had made beyond it by the
    job's env steps, from the metrics of rank 0 (NaN without); 0 on the topologies of `TOGETHER`.
    """
    parts = [part for run in runs for part in _of_run(run)]
    meta = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    return dd.from_delayed(parts or [dask.delayed(meta)], meta=meta, verify_meta=False)


def table(runs: Sequence[RecordedRun]) -> pd.DataFrame:
    """`episodes`, computed, by env steps within each run; kept for the next program that asks for the same runs."""
    return _computed(tuple(runs)).copy(deep=False)


@lru_cache(maxsize=1)
def _computed(runs: tuple[RecordedRun, ...]) -> pd.DataFrame:
    whole = episodes(runs).compute()
    return whole.sort_values("env_steps", kind="stable", ignore_index=True)


def _of_run(run: RecordedRun) -> list[object]:
    groups = [run.segments[k : k + _TOGETHER] for k in range(0, len(run.segments), _TOGETHER)]
    read = [dask.delayed(_read)(group, dict(run.limits)) for group in groups]
    of_run = dask.delayed(_pace)(read, run.job.environment.columns)
    updates = dask.delayed(_updates)(run)
    together = run.job.topology in TOGETHER
    return [dask.delayed(_table)(run.name, together, part, of_run, updates) for part in read]


def _read(group: Sequence[Segment], limits: Limits) -> list[Tree]:
    """`ends` of each segment, and "attempt" [n] beside the episodes."""
    parts = []
    for segment in group:
        part = ends(segment, limits)
        parts.append({**part, "attempt": np.full(len(part["end"]), segment.attempt)})
    return parts


def _pace(groups: Sequence[Sequence[Tree]], columns: int) -> Pace:
    return pace([part for group in groups for part in group], columns)


def _updates(run: RecordedRun) -> tuple[Array, Array]:
    """(env steps, updates) of the learner, both rising from 0; empty where rank 0 wrote no metrics."""
    lines = progress(run)
    if lines.empty or "updates" not in lines:
        return np.empty(0), np.empty(0)
    known = lines[["env_steps", "updates"]].dropna().to_numpy(float)
    with contextlib.suppress(BadJob):  # a method that this version does not have
        idle = jobs.experience(run.job).min_size
        known = np.concatenate([[[idle, 0.0]] if 0 < idle < known[:1, 0].max(initial=0) else np.empty((0, 2)), known])
    return np.append(0.0, known[:, 0]), np.append(0.0, known[:, 1])


def _table(
    name: str, together: bool, parts: Sequence[Tree], of_run: Pace, updates: tuple[Array, Array]
) -> pd.DataFrame:
    leaves = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if not key.startswith("pace_")}
    leaves["env_steps"] = job_steps(of_run, leaves["column"], leaves["end"])
    leaves["start"] = leaves["end"] - leaves["length"]
    learned = np.interp(leaves["env_steps"], *updates) if len(updates[0]) else np.full(len(leaves["end"]), np.nan)
    leaves["lag"] = np.where(together, 0, np.maximum(np.floor(learned) - leaves["version"], 0))
    leaves["run"] = np.full(len(leaves["end"]), name, object)
    return pd.DataFrame({key: leaves[key] for key in COLUMNS}).astype(COLUMNS)
