"""The job that waits for runs and writes a report about them: sent after them, seen and cancelled beside them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_rl.launchers import reasons, slurm
from hpc_rl.launchers.options import Options, seconds
from hpc_rl.launchers.script import command_line, interpreter, pattern, quote, render_analysis, word
from hpc_rl.launchers.slurm import JobStatus
from hpc_rl.status import OVER, Status, look_up
from hpc_rl.storage.run_dir import RunDir, write_text
from hpc_rl.storage.untrusted import Unreadable, read_text

REPORT = "report/index.html"
LEAST_SPREAD = 3  # tasks of an analysis over several nodes: a scheduler, the program, and a worker
MINUTES = 30  # of the analysis; less where the runs themselves have less


def analyze_after(ids: Sequence[str], runs: Sequence[Path], options: Options, home: Path, tasks: int = 1) -> str:
    """A job of so many ``tasks`` that writes the report once these jobs are over; its id. Raises SlurmError.

    It requests no more time than the runs, which partition and QOS have just accepted.
    """
    keys = ("partition", "account", "qos", "reservation")
    limit = seconds(options.time)
    time = options.time if options.time is None or (limit is not None and limit < 60 * MINUTES) else str(MINUTES)
    sbatch_options = {key: value for key in keys if (value := getattr(options, key))} | ({"time": time} if time else {})
    directives = [f"--{key}={word(value)}" for key, value in sbatch_options.items()]
    directives += [
        f"--dependency=afterany:{':'.join(ids)}",
        f"--output={word(pattern(home.absolute()))}/submit/analysis-%j.out",
    ]
    directives += [f"--ntasks={tasks}"] if tasks > 1 else []
    folders, out = command_line([str(run.absolute()) for run in runs]), (home.absolute() / REPORT).parent
    text = render_analysis(directives, interpreter(options), folders, quote(out), options)
    script = home / "submit" / "analysis.sbatch"
    write_text(script, text)
    job = slurm.sbatch(script)
    write_text(_file(home), f"{job}\n")
    return job


def analyses(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Status]:
    """A line for each analysis of these folders, or of those one folder below."""
    homes = [home for path in paths for home in (path, *sorted(p for p in path.glob("*") if p.is_dir()))]
    ids = {home: job for home in homes if (job := _job(home))}
    statuses, answered = look_up(list(ids.values()), warn) if ids else ({}, None)
    return [_line(home, job, statuses.get(job), answered) for home, job in ids.items()]


def cancel(runs: Sequence[RunDir]) -> list[str]:
    """End the analyses of which all runs are among these; a sentence for each that was waiting. Raises SlurmError."""
    run_paths = {run.path for run in runs}
    homes = dict.fromkeys(home for run in runs for home in (run.path, run.path.parent))
    ids = {
        home: job
        for home in homes
        if (job := _job(home))
        and (home in run_paths or run_paths.issuperset(p.parent for p in home.glob("*/job.toml")))
    }
    statuses = slurm.query(list(ids.values())) if ids else {}
    active = {home: job for home, job in ids.items() if job in statuses and statuses[job].active}
    slurm.cancel(list(active.values()))
    return [f"{home / REPORT}: analysis job {job} cancelled" for home, job in active.items()]


def _file(home: Path) -> Path:
    return home / "submit" / "analysis.job"


def _job(home: Path) -> str:
    """The id of the analysis that waits for the runs of ``home``; empty where there is none."""
    with contextlib.suppress(FileNotFoundError, Unreadable):
        job = read_text(_file(home)).strip()
        return job if re.fullmatch("[0-9]+", job) else ""
    return ""


def _line(home: Path, job: str, status: JobStatus | None, answered: bool | None) -> Status:
    if status is None:
        state = "done" if (home / REPORT).exists() else "lost" if answered else "pending"
    elif status.active:
        state = "pending" if status.state == "PENDING" else "running"
    else:
        state = {"COMPLETED": "done", "CANCELLED": "stopped"}.get(status.state, "failed")
    waits = reasons.explain(status.reason) if status and state == "pending" and status.reason else ""
    reason = f"see {home}/submit/analysis-{job}.out" if state in ("failed", "lost") else ""
    return Status(str(home / REPORT), "analysis", state, job, status.state if status else "", 0, None, 0,
                  status.start if status else "", reason, waits=waits, over=state in OVER)  # fmt: skip
