"""What the batch script asks Python before and after the ranks: `python -m hpc_rl.launchers.batch begin|end|note RUN`.

`end` prints one word for the script: ``again`` (requeue or chain), ``done``, ``stopped``, ``failed``, or ``superseded``
where another attempt owns the run by now. It needs no torch and no MPI, and writes nothing but the run's state and the
list of its SLURM jobs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers.blame import all_records, blame, rank_records
from hpc_rl.launchers.local import processes, sweep
from hpc_rl.storage.run_dir import BUDGET_SPENT, BadRun, RunDir, create, open_run, write_json
from hpc_rl.storage.untrusted import Unreadable, appended, read_end, read_json, read_text

IDLE_RESTARTS = 3  # attempts in a row without progress that end a run of signals; after a failure one does
_ATTEMPT = {"token": str, "env_steps": int, "log_bytes": int, "idle": int, "ended": bool}


def main(arguments: list[str] | None = None) -> int:
    """Entry; expected errors become one sentence and exit code 2."""
    given = _parser().parse_args(arguments)
    try:
        if given.what == "begin":
            begin(given.run, given.job, given.token, given.restarts, given.ranks, given.source, given.set)
        elif given.what == "note":
            note_job(RunDir(given.run), given.job)
        else:
            asked = bool(given.asked)
            print(end(given.run, given.token, given.code, asked, given.restarts, given.max_restarts, given.mode))
    except (BadJob, BadRun, Unreadable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {given.run} cannot be written ({error}); free space, then resume the run", file=sys.stderr)
        return 2
    return 0


def begin(
    folder: Path, job_id: str, token: str, restarts: int, ranks: int, source: str | None, overrides: list[str]
) -> None:
    """Make the run ready for an attempt; from ``source`` where it does not exist yet.

    Raises:
        BadRun: no run, or another SLURM job at work in it.
        BadJob: a job for another number of ranks, or too many attempts without progress; the run is then failed.
    """
    if source is not None and not (folder / "job.toml").exists():
        run = create(folder, jobs.dumps(jobs.load(source, (*overrides, f"resources.ranks={ranks}"))))
    else:
        run = open_run(folder)
    _take_over(run)
    if source is not None and restarts == 0:  # otherwise the STOP file is from after the submission, and holds
        run.clear_stop()
    note_job(run, job_id)
    try:
        _check(run, ranks)
        idle = _idle(run) if restarts else 0
        if idle >= IDLE_RESTARTS:
            raise BadJob(
                f"{idle} attempts in a row ended without progress and without a word, so it is not started again; "
                f"see {run.logs}, then hpc-rl resume {run.path}"
            )
    except BadJob as error:
        run.write_state(state="failed", reason=str(error))
        raise
    log = run.logs / "ranks.log"
    write_json(run.path / "submit" / "attempt.json", {
        "token": token,
        "env_steps": run.read_state()["env_steps"],
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "idle": idle,
        "ended": False,
    })  # fmt: skip


def end(folder: Path, token: str, code: int, asked: bool, restarts: int, most: int, mode: str) -> str:
    """The word for the script; state.json says why in one sentence. Raises BadRun, OSError."""
    run = open_run(folder)
    started = _attempt(run)
    if started.get("token") != token:
        return "superseded"
    state = run.read_state()
    sweep({token}, None, run)
    if state["state"] == "done" and code == 0:
        return "done"
    whole = state["state"] == "stopped"
    sentence = state["reason"] if whole else blame(run, _said(run, started), code, {})
    if not whole and asked and not rank_records(run):
        whole, sentence = True, "stopped: asked to stop before the ranks had started"
    word = "stopped" if whole else "failed"
    idle = _idle(run)
    write_json(run.path / "submit" / "attempt.json", {**started, "idle": idle, "ended": True})
    if not _final(run, sentence) and not _hopeless(run) and mode != "none":
        if restarts and idle >= (IDLE_RESTARTS if whole or asked else 1):
            sentence += "; a restart made no progress, so it is not started again"
        elif restarts >= most:
            sentence += f"; it was restarted {restarts} times, as often as --max-restarts allows"
        else:
            word, sentence = "again", f"{sentence}; restart {restarts + 1} is waiting"
    print(f"{folder.name}: {sentence}", file=sys.stderr)
    run.write_state(state="pending" if word == "again" else word, reason=sentence)
    return word


def note_job(run: RunDir, job_id: str) -> None:
    """Add a SLURM job to the run's list: a line at its end, for login node and job may write at the same time."""
    (run.path / "submit").mkdir(exist_ok=True)
    with os.fdopen(appended(run.path / "submit" / "jobs"), "a") as file:
        file.write(f"{job_id}\n")


def job_ids(run: RunDir) -> list[str]:
    """SLURM jobs of this run, oldest first; ``<array>_<task>`` for a task of an array. What is no job is left out:
    scancel would take it for an option.
    """
    try:
        words = read_text(run.path / "submit" / "jobs").split()
    except (FileNotFoundError, Unreadable):
        return []
    return list(dict.fromkeys(word for word in words if re.fullmatch(r"[0-9]+(_[0-9]+)?", word)))


def _check(run: RunDir, ranks: int) -> None:
    """Say what is wrong before srun. Raises BadJob."""
    job = jobs.load(run.job_file)
    if job.resources.ranks != ranks:
        raise BadJob(
            f"SLURM gives {ranks} task(s) but {run.job_file} has resources.ranks = {job.resources.ranks}; "
            f"hpc-rl resume {run.path} renders the script again"
        )
    jobs.topology(job.topology).plan(job)


def _idle(run: RunDir) -> int:
    """Attempts in a row without progress, up to the latest; one that was lost with its node counts itself here."""
    latest = _attempt(run)
    if latest.get("ended", True):
        return int(latest.get("idle", 0))
    progress = run.read_state()["env_steps"] > latest["env_steps"]
    return 0 if progress else latest["idle"] + 1


def _final(run: RunDir, sentence: str) -> bool:
    """Somebody wanted it to end here: a STOP file, or the job's own time limit."""
    return run.stop_requested() or sentence.startswith(BUDGET_SPENT)


def _hopeless(run: RunDir) -> bool:
    """A rank was refused before it had a seat (wrong PMI, a job that cannot be planned): it would be again."""
    return any(r.get("ended") == "error" and "pid" not in r and not r["bug"] for r in all_records(run))


def _take_over(run: RunDir) -> None:
    """Clear away what earlier attempts of this run left on this host. Raises BadRun where somebody else is at work."""
    ours = job_ids(run)
    tokens = {str(record["token"]) for record in rank_records(run) if record.get("token")}
    if living := processes({token for token in tokens if token.partition("-")[0] not in ours}):
        raise BadRun(
            f"{run.path} is still being worked on by process {min(living)}, not of this job; "
            f"stop that first (touch {run.path}/STOP)"
        )
    sweep(tokens, None, run)
    for path in run.logs.glob("rank-*.json"):
        path.unlink(missing_ok=True)


def _attempt(run: RunDir) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(run.path / "submit" / "attempt.json", _ATTEMPT, needed=_ATTEMPT)
    except (FileNotFoundError, Unreadable):
        return {}
    return found


def _said(run: RunDir, started: dict[str, Any]) -> str:
    try:
        return read_end(run.logs / "ranks.log", begin=started.get("log_bytes", 0))
    except (FileNotFoundError, Unreadable):
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpc_rl.launchers.batch", description=__doc__)
    parser.add_argument("what", choices=("begin", "end", "note"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--job", default="0")
    parser.add_argument("--token", default="")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--source")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--asked", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("--mode", default="requeue")
    return parser


if __name__ == "__main__":
    sys.exit(main())
