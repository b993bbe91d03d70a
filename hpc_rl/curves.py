"""The job that waits for runs and draws their learning curves: sent after them, seen and cancelled beside them."""

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

PICTURE = "learning_curve.png"
MINUTES = 30  # it asks for; less where the runs themselves ask for less


def analyze_after(after: Sequence[str], runs: Sequence[Path], options: Options, home: Path) -> str:
    """A job of one task that draws the learning curve once these jobs are over; its id. Raises SlurmError.

    It asks for no more time than the runs, which partition and QOS have just accepted.
    """
    keys = ("partition", "account", "qos", "reservation")
    limit = seconds(options.time)
    time = options.time if options.time is None or (limit is not None and limit < 60 * MINUTES) else str(MINUTES)
    given = {key: value for key in keys if (value := getattr(options, key))} | ({"time": time} if time else {})
    directives = [f"--{key}={word(value)}" for key, value in given.items()]
    directives += [
        f"--dependency=afterany:{':'.join(after)}",
        f"--output={word(pattern(home.absolute()))}/submit/analysis-%j.out",
    ]
    folders, out = command_line([str(run.absolute()) for run in runs]), home.absolute() / PICTURE
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
    seen, known = look_up(list(ids.values()), warn) if ids else ({}, None)
    return [_line(home, job, seen.get(job), known) for home, job in ids.items()]


def cancel(found: Sequence[RunDir]) -> list[str]:
    """End the analyses of which all runs are among these; a sentence for each that was waiting. Raises SlurmError."""
    chosen = {run.path for run in found}
    homes = dict.fromkeys(home for run in found for home in (run.path, run.path.parent))
    ids = {
        home: job
        for home in homes
        if (job := _job(home)) and (home in chosen or chosen.issuperset(p.parent for p in home.glob("*/job.toml")))
    }
    seen = slurm.query(list(ids.values())) if ids else {}
    active = {home: job for home, job in ids.items() if job in seen and seen[job].active}
    slurm.cancel(list(active.values()))
    return [f"{home / PICTURE}: analysis job {job} cancelled" for home, job in active.items()]


def _file(home: Path) -> Path:
    return home / "submit" / "analysis.job"


def _job(home: Path) -> str:
    """The id of the analysis that waits for the runs of ``home``; empty where there is none."""
    with contextlib.suppress(FileNotFoundError, Unreadable):
        job = read_text(_file(home)).strip()
        return job if re.fullmatch("[0-9]+", job) else ""
    return ""


def _line(home: Path, job: str, seen: JobStatus | None, known: bool | None) -> Status:
    if seen is None:
        state = "done" if (home / PICTURE).exists() else "lost" if known else "pending"
    elif seen.active:
        state = "pending" if seen.state == "PENDING" else "running"
    else:
        state = {"COMPLETED": "done", "CANCELLED": "stopped"}.get(seen.state, "failed")
    waits = reasons.plain(seen.reason) if seen and state == "pending" and seen.reason else ""
    reason = f"see {home}/submit/analysis-{job}.out" if state in ("failed", "lost") else ""
    return Status(str(home / PICTURE), "analysis", state, job, seen.state if seen else "", 0, None, 0,
                  seen.start if seen else "", reason, waits=waits, over=state in OVER)  # fmt: skip
