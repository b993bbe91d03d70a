"""Stages of training: tenths of the env steps that the whole job made, whatever each of its columns made of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import dask
import numpy as np

from hpc_rl.analysis.pace import Pace, job_steps, pace
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.storage import recorded
from hpc_rl.storage.segments import Limits, Segment
from hpc_rl.types import Array, Tree

STAGES = 10
NAMES = tuple(f"{100 * k // STAGES}-{100 * (k + 1) // STAGES} %" for k in range(STAGES))
_TOGETHER = 32  # segments that one task reads

Borders = Mapping[int, Array]
"""Column -> [STAGES - 1] int64: the column's env steps with which stages 1, 2, … begin."""

_known: dict[tuple[str, int, str], Borders] = {}  # of runs as they were when they were opened


def borders(run: RecordedRun) -> Borders:
    """Where the stages of a run begin, from the pace of its columns. Reads versions once for each state of a run."""
    key = (str(run.path.resolve()), len(run.segments), str(run.segments[-1].path) if run.segments else "")
    if key not in _known:
        groups = [run.segments[k : k + _TOGETHER] for k in range(0, len(run.segments), _TOGETHER)]
        parts = dask.compute([dask.delayed(partial(_paces, group, run.limits), pure=False)() for group in groups])[0]
        _known[key] = _borders(pace([part for group in parts for part in group], run.job.environment.columns))
    return _known[key]


def _paces(group: tuple[Segment, ...], limits: Limits) -> list[Tree]:
    return [recorded.paces(segment, limits) for segment in group]


def _borders(of_run: Pace) -> Borders:
    at = {c: job_steps(of_run, np.full(len(steps), c), steps) for c, (_, steps) in of_run.knots.items()}
    last = max((int(job[-1]) for job in at.values()), default=0)
    begins = np.arange(1, STAGES) / STAGES * last
    return {c: np.ceil(np.interp(begins, at[c], steps)).astype(np.int64) for c, (_, steps) in of_run.knots.items()}
