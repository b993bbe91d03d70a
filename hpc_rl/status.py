"""`hpc-rl status`: the state that each run recorded, then that of its SLURM jobs: one query for all runs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from hpc_rl import efficiency
from hpc_rl import job as jobs
from hpc_rl.efficiency import Efficiency
from hpc_rl.launchers import accounting, causes, reasons, slurm
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.launchers.slurm import JobStatus
from hpc_rl.run_folders import runs_of
from hpc_rl.storage.metrics import CHIEFS, last_line, rate
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.untrusted import Unreadable, printable, read_end, read_lines

OVER = ("stopped", "done", "failed", "lost", "unreadable")
TAIL_BYTES = 4096  # of an output are shown at first
_TASK = {"run": str, "changes": list[str]}


@dataclass(frozen=True)
class Status:
    """One line. ``state`` is what the run recorded, or lost: SLURM ended the job and no rank could record why.

    ``changes`` distinguish this task of an array from the others; ``mean_return`` is that of the last 100 episodes;
    ``waits`` is SLURM's reason in plain words; ``elapsed_s`` and ``left_s`` are of this start of its job; ``end`` is
    when the budget would be used at the present rate. ``over``: run and SLURM agree that nothing goes on. ``cause`` is
    why the latest attempt ended, in a word or two, ``next`` the command that goes on with the run. ``efficiency`` is
    that of a run which is looked at alone; "slurm" in it is what SLURM's database has of it, else null.
    """

    run: str
    changes: str
    state: str
    job: str
    slurm: str
    env_steps: int
    mean_return: float | None
    attempt: int
    start: str
    reason: str
    waits: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None
    nodes: str = ""
    env_steps_per_s: float | None = None
    end: str = ""
    over: bool = False
    cause: str = ""
    next: str = ""
    efficiency: Efficiency | None = None


def status(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Status]:
    """`states` of all runs of these folders or jobs; of a single one also its efficiency. Raises BadRun."""
    runs = runs_of(paths)
    lines = states(runs, warn)
    return [replace(lines[0], efficiency=_efficiency(runs[0], warn))] if len(runs) == 1 else lines


def states(runs: Sequence[RunDir], warn: Callable[[str], None]) -> list[Status]:
    """State of every run; where SLURM does not answer, ``warn`` gets that and what the runs recorded stands.

    A chain has two jobs of interest, its waiting successor and the one that runs.
    """
    ids = {run.path: job_ids(run)[-2:] for run in runs}
    statuses, answered = look_up([job for jobs in ids.values() for job in jobs], warn)
    return [
        _line(run, [statuses[job] for job in ids[run.path] if job in statuses], ids[run.path], answered) for run in runs
    ]


def _efficiency(run: RunDir, warn: Callable[[str], None]) -> Efficiency | None:
    if (figures := efficiency.of(run)) is None:
        return None
    try:
        return {**figures, "slurm": accounting.consumed(job_ids(run))}
    except slurm.SlurmError as error:
        warn(f"{error}; what SLURM accounts for is left out")
        return {**figures, "slurm": None}


def look_up(ids: Sequence[str], warn: Callable[[str], None]) -> tuple[Mapping[str, JobStatus], bool | None]:
    """What SLURM knows, and whether it answered: False without SLURM, None where it did not answer."""
    try:
        return slurm.query(ids), slurm.available()
    except slurm.SlurmError as error:
        warn(f"{error}; the states below are those that the runs recorded")
        return {}, None


def render(lines: Sequence[Status]) -> str:
    """A table without its empty columns; below a row what it changes and why it is so, which may be long."""
    rows = [("run", "state", "job", "slurm", "elapsed", "left", "nodes", "env steps", "/s", "end", "return", "attempt")]
    notes = [""]
    for line in lines:
        mean = "–" if line.mean_return is None else f"{line.mean_return:.2f}"
        speed = "" if line.env_steps_per_s is None else f"{line.env_steps_per_s:,.0f}"
        times = (_clock(line.elapsed_s), _clock(line.left_s), line.nodes)
        rows.append((line.run, line.state, line.job, line.slurm, *times, f"{line.env_steps:,}", speed, line.end, mean,
                     str(line.attempt)))  # fmt: skip
        start = f"starts about {line.start}" if line.start and line.slurm == "PENDING" else ""
        waits = f"waits: {line.waits}" if line.waits else ""
        note = "; ".join(text for text in (line.changes, waits, start, line.reason) if text)
        efficient = efficiency.told(line.efficiency) if line.efficiency else []
        notes.append("\n    ".join(map(printable, [*([note] if note else []), *efficient])))
    columns = [k for k, title in enumerate(rows[0]) if len(rows) == 1 or any(row[k] for row in rows[1:])]
    widths = [max(len(row[k]) for row in rows) for k in columns]
    text = ["  ".join(row[k].ljust(w) for k, w in zip(columns, widths, strict=True)).rstrip() for row in rows]
    pairs = zip(map(printable, text), notes, strict=True)
    return "\n".join(row + (f"\n    {note}" if note else "") for row, note in pairs)


def as_json(lines: Sequence[Status]) -> str:
    return json.dumps([asdict(line) for line in lines], indent=1)


def _line(run: RunDir, statuses: Sequence[JobStatus], ids: Sequence[str], answered: bool | None) -> Status:
    try:
        state = run.read_state()
    except BadRun as error:  # one such run among many
        return Status(
            str(run.path), "", "unreadable", ids[-1] if ids else "", "", 0, None, 0, "", str(error), over=True
        )
    active = [item for item in statuses if item.active]
    candidates = active or list(statuses)
    current = next(
        (item for item in active if item.state != "PENDING"), candidates[-1] if candidates else JobStatus("", "", False)
    )
    word, reason, cause, command = _why(run, state, current, bool(ids and not active and answered), ids)
    if state["lost"] and causes.without(state["lost"]) not in reason:
        reason = "; ".join(text for text in (reason, causes.without(state["lost"])) if text)
    metrics, changes = _live(run, state["attempt"]), _tasks(run.path.parent).get(run.path.name, "")
    env_steps = max(state["env_steps"], int(metrics.get("env_steps") or 0)) if word == "running" else state["env_steps"]
    waiting, at_work = current.state == "PENDING", current.active and current.state != "PENDING"
    speed = _rate(run, state["attempt"]) if word == "running" else None
    return Status(
        str(run.path), changes, word, current.job or (ids[-1] if ids else ""), current.state, env_steps,
        metrics.get("mean_return_100"), state["attempt"], current.start, reason,
        waits=reasons.explain(current.reason) if waiting and current.reason else "",
        elapsed_s=current.elapsed_s if at_work else None,
        left_s=current.left_s if at_work else None,
        nodes=current.nodes if at_work else "",
        env_steps_per_s=speed,
        end=_end(run, env_steps, speed, current.elapsed_s or 0),
        # the ranks of a job that is about to be requeued have stopped already, so their word alone is not enough
        over=word in OVER and not active and (answered is not None or word == "done" or not ids),
        cause=cause,
        next=command,
    )  # fmt: skip


def _why(
    run: RunDir, state: dict[str, Any], current: JobStatus, job_over: bool, ids: Sequence[str]
) -> tuple[str, str, str, str]:
    """(state, reason, cause, next command): the run's own, or what SLURM knows where no rank could record it."""
    word, reason, cause, command = state["state"], state["reason"], state["cause"], causes.pasted(state["next"])
    if word in ("running", "pending") and job_over:
        word = "stopped" if current.state == "CANCELLED" else "lost"  # by scancel, which the run cannot see
        cause = causes.of_state(current.state) if current.job else "unknown"
        reason = f"{_ended(current) if current.job else f'SLURM no longer knows job {ids[-1]}'}{_last_words(run)}"
        command = causes.saved_too_late(run) if current.state == "TIMEOUT" else causes.go_on(run, cause)
    elif word == "running" and current.state == "PENDING":
        word, cause = "pending", "node lost"
        reason = f"SLURM requeued job {current.job}: its node was lost, or its script was killed"
    elif word == "stopped" and not cause and current.state in slurm.ENDED[1:]:
        # its ranks saved in time, but its script was killed before it had found out why
        cause, reason = causes.of_state(current.state), f"{reason}: {_ended(current)}"
        command = causes.go_on(run, cause)
    if word in ("stopped", "failed", "lost") and command:
        reason = f"{reason}; go on with {command}"
    return word, reason, cause, command


def _ended(job: JobStatus) -> str:
    by = re.search(r"by (\d+)", job.reason)
    return f"SLURM ended job {job.job}: {job.state}" + (f" by {causes.user(int(by[1]))}" if by else "")


def _live(run: RunDir, attempt: int) -> dict[str, Any]:
    """Rank 0's newest metrics, which are younger than the last checkpoint.

    Of an attempt before this one they are no env steps: what lies beyond the checkpoint was given up.
    """
    with contextlib.suppress(FileNotFoundError, Unreadable):
        file = _metrics(run)
        row = last_line(file) or {} if file else {}
        return row if row.get("attempt", attempt) == attempt else {**row, "env_steps": None}
    return {}


def _metrics(run: RunDir) -> Path | None:
    files = (run.metrics / f"{name}.jsonl" for name in CHIEFS)
    return next((file for file in files if file.exists()), None)


def _rate(run: RunDir, attempt: int) -> float | None:
    """Env steps per second over the last minute of this attempt; None where that is not known yet."""
    with contextlib.suppress(FileNotFoundError, Unreadable):
        file = _metrics(run)
        return rate(file, attempt) if file else None
    return None


def _end(run: RunDir, env_steps: int, speed: float | None, elapsed_s: int) -> str:
    """When the budget is used at this rate, as SLURM writes times, to the minute."""
    if not speed:
        return ""
    try:
        budget = jobs.load(run.job_file).budget
    except jobs.BadJob:
        return ""
    updates = run.read_state()["updates"] if budget.updates else 0
    left_s = budget.left(env_steps, updates) / speed
    if budget.time_limit_s:
        left_s = min(left_s, max(0.0, budget.time_limit_s - elapsed_s))
    with contextlib.suppress(OverflowError):
        return (datetime.now() + timedelta(seconds=left_s)).isoformat(timespec="minutes")
    return ""


def _clock(seconds: int | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=seconds))


@cache
def _tasks(folder: Path) -> dict[str, str]:
    """Run -> what it changes, of an array's folder; of any other folder nothing."""
    try:
        tasks = list(read_lines(folder / "submit" / "tasks.jsonl", _TASK, required=_TASK))
    except (FileNotFoundError, Unreadable):
        return {}
    return {task["run"]: " ".join(task["changes"]) for task in tasks}


def script_outputs(run: RunDir) -> list[Path]:
    """What the batch scripts of this run printed, the latest last."""
    return sorted(run.logs.glob("slurm-*.out"), key=lambda file: file.lstat().st_mtime)


def _last_words(run: RunDir) -> str:
    """The end of the batch script's output: there a shell names what it could not find."""
    scripts = script_outputs(run)
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError, Unreadable):
        lines = read_end(scripts[-1], TAIL_BYTES).split("\n") if scripts else []
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last output: {last_line[:160]}" if last_line else ""
