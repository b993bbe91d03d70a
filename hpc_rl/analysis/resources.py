"""What a run was given: cores, GPUs, and the power that was measured."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from hpc_rl import efficiency, usage
from hpc_rl import job as jobs
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.config import BadJob
from hpc_rl.launchers import accounting, slurm
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.storage.run_dir import RunDir


@dataclass(frozen=True)
class Resources:
    """Means over attempts by their hours. ``kilowatts``: NaN where nothing measured energy, which ``energy`` names;
    ``source``: of counts."""

    cores: float
    gpus: float
    kilowatts: float
    source: str
    energy: str


def resources(run: RecordedRun) -> Resources:
    """By usage.json; of a run without it the threads of all ranks, and a GPU for each rank that learns on one."""
    folder = RunDir(run.path)
    figures = efficiency.of(folder)
    if figures is None or not figures["wall_hours"]:
        return Resources(cores(run), _gpus(run), np.nan, "the job", "")
    hours = figures["wall_hours"]
    source = usage.usage(folder)[-1]["asked_of"]
    kwh, energy = _kwh(folder, figures)
    return Resources(cores(run), figures["gpu_hours"] / hours, kwh / hours, source, energy)


def cores(run: RecordedRun) -> float:
    """What the run's ranks were given, by usage.json; of a run without it the threads that the job gives them."""
    figures = efficiency.of(RunDir(run.path))
    if figures is not None and figures["wall_hours"]:
        return float(figures["core_hours"] / figures["wall_hours"])
    with contextlib.suppress(BadJob):
        return float(sum(max(spec.threads, 1) for spec in jobs.plan(run.job).ranks))
    return 0.0


def _kwh(folder: RunDir, figures: efficiency.Efficiency) -> tuple[float, str]:
    """What SLURM's accounting measured for the jobs of a run, else what the counters of its hosts did, and which of
    both; (NaN, "") where neither knows all of it."""
    with contextlib.suppress(slurm.SlurmError):
        account = accounting.consumed(job_ids(folder))
        if account and account["energy_j"]:
            return account["energy_j"] / 3.6e6, "SLURM's accounting"
    parts = [figures["processor_energy_kwh"], *([figures["gpu_energy_kwh"]] if figures["gpu_hours"] else [])]
    return (np.nan, "") if None in parts else (sum(parts), "counters of the hosts")


def _gpus(run: RecordedRun) -> int:
    if run.job.resources.device != "cuda":  # auto was decided when the run began
        return 0
    try:
        return len(jobs.plan(run.job).accelerated)
    except BadJob:
        return 0
