"""How a run went on by the clock, from the metrics of rank 0: env steps, updates, hours, whatever a line holds."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.storage import metrics
from hpc_rl.storage.untrusted import Unreadable, read_json
from hpc_rl.types import Array

_PROVENANCE_BYTES = 16 << 20


@lru_cache(maxsize=64)
def progress(run: RecordedRun) -> pd.DataFrame:
    """The metric lines of rank 0 that count, by env steps, and "training_s": what the run had taken by then.

    That is the wall-clock of all attempts from their starts, with work that was lost and without the time between them.
    Empty, with the columns env_steps, updates and training_s, where there are none. It is kept for whoever asks
    again: not to be changed.
    """
    lines = _lines(run.chief)
    if not lines:
        return pd.DataFrame({name: np.empty(0) for name in ("env_steps", "updates", "training_s")})
    begins = {attempt: _began(run.path, attempt) for attempt in {line.get("attempt") or 0 for line in lines}}
    spent, spans = 0.0, {}
    for attempt in sorted(begins):
        times = [line["time"] for line in lines if (line.get("attempt") or 0) == attempt]
        begin = begins[attempt] if begins[attempt] is not None and begins[attempt] <= times[0] else times[0]
        spans[attempt] = spent - begin
        spent += times[-1] - begin
    counting = [line for line, counts in zip(lines, metrics.counting(lines), strict=True) if counts]
    table = pd.DataFrame(counting)
    table["env_steps"] = table["step"]
    table["training_s"] = [line["time"] + spans[line.get("attempt") or 0] for line in counting]
    return table.drop_duplicates("env_steps", keep="last").reset_index(drop=True)


def hours_at(run: RecordedRun, env_steps: Array) -> Array:
    """Hours of wall-clock when the run was so far (times `resources.cores`: core-hours); NaN without metrics."""
    table = progress(run)
    if table.empty:
        return np.full(len(env_steps), np.nan)
    seconds: Array = np.interp(env_steps, np.append(0, table["env_steps"]), np.append(0, table["training_s"]))
    return seconds / 3600


def _lines(path: Path | None) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError, Unreadable):
        return [line for line in metrics.rows(path) if {"step", "time"} <= line.keys()] if path else []
    return []


def _began(folder: Path, attempt: int) -> float:
    time = _provenance(folder, attempt).get("time")
    return float(time) if isinstance(time, int | float) else np.inf


def _provenance(folder: Path, attempt: int) -> dict[str, Any]:
    path = folder / "provenance" / f"{attempt:04d}.json"
    with contextlib.suppress(FileNotFoundError, Unreadable):
        provenance: dict[str, Any] = read_json(path, {}, most=_PROVENANCE_BYTES)
        return provenance
    return {}
