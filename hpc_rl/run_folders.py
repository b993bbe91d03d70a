"""Which runs the paths on a command line name: folders of runs, of arrays and of several of these, and jobs' ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hpc_rl.launchers import slurm
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.storage.run_dir import BadRun, RunDir

RUNS = Path("runs")  # where commands that make a run put it, and `status` looks
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")


def runs_of(paths: Sequence[Path]) -> list[RunDir]:
    """The runs of these folders; an array's folder, or a folder of runs and arrays, stands for all; a job's id for its
    own. Raises BadRun, SlurmError.
    """
    runs: list[RunDir] = []
    for path in paths:
        if _JOB.fullmatch(str(path)) and not path.exists():
            runs += _of_job(str(path))
        elif (path / "job.toml").is_file():
            runs.append(RunDir(path))
        elif below := _below(path):
            runs += below
        else:
            raise BadRun(f"{path} holds no run; name the folder of a run or of runs, or a job's id")
    return runs


def _below(path: Path) -> list[RunDir]:
    return [RunDir(p) for p in sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/job.toml"))]


def _of_job(job: str) -> list[RunDir]:
    """The runs of a SLURM job, or of all tasks of an array: among ./runs, else where SLURM has its script from."""
    script = Path(slurm.script_of(job) or "/")
    for candidates in (_below(RUNS), [RunDir(script.parents[1]), *_below(script.parents[1])] if script.name else []):
        if runs := [
            run for run in candidates if any(re.fullmatch(rf"{job}(_\d+)?", job_id) for job_id in job_ids(run))
        ]:
            return runs
    raise BadRun(f"job {job} belongs to no run below {RUNS}, and SLURM does not know its folder; name that folder")


def single(path: Path) -> RunDir:
    """The one run of this folder, or of a job's id. Raises BadRun, naming one of several."""
    if (path / "job.toml").is_file():
        return RunDir(path)
    runs = runs_of([path])
    if len(runs) == 1 and not path.exists():
        return runs[0]
    raise BadRun(f"{path} holds {len(runs)} run(s); name one, like {runs[0].path}")


def check_present(runs: Sequence[RunDir]) -> None:
    """Raises BadRun where a run's folder is gone: its end would never be recorded."""
    for run in runs:
        if not run.job_file.is_file():
            raise BadRun(f"{run.path} holds no run any more: it was removed or moved; name its new folder")
