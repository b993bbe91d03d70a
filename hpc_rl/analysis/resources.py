"""What a run was given: cores, GPUs, and the power that was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.analysis.progress import cores
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.config import BadJob


@dataclass(frozen=True)
class Resources:
    """``kilowatts`` on the average, NaN where nothing measured it; ``source`` says where the counts come from."""

    cores: int
    gpus: int
    kilowatts: float
    source: str


def resources(run: RecordedRun) -> Resources:
    """From the plan of the job: the threads of all ranks, and a GPU for each rank that learns on one."""
    return Resources(cores(run), _gpus(run), np.nan, "the job")


def _gpus(run: RecordedRun) -> int:
    if run.job.resources.device != "cuda":  # auto was decided when the run began
        return 0
    try:
        return len(jobs.plan(run.job).accelerated)
    except BadJob:
        return 0
