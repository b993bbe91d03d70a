"""Steps of the batch script before and after the ranks: `python -m hpc_rl.launchers.attempt begin|end|… RUN`.

`begin` prints how often the run was restarted since its submission, or ``done``. `end` prints one word for the
script: ``again`` (requeue or chain), ``done``, ``stopped``, ``failed``, or ``superseded`` where another attempt owns
the run by now. It needs no torch and no MPI, and writes nothing but the run's state and the
list of its SLURM jobs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import causes
from hpc_rl.launchers.causes import Ending
from hpc_rl.launchers.leftovers import clean_up, processes
from hpc_rl.launchers.postmortem import first_failure
from hpc_rl.storage.rank_records import all_records, rank_records
from hpc_rl.storage.run_dir import BadRun, RunDir, create, open_run, refuse_done, write_json
from hpc_rl.storage.untrusted import Unreadable, appended, read_end, read_json, read_text

LOST = "the attempt before was lost"
WAITING = "; restart {} is waiting"
IDLE_RESTARTS = 3  # attempts in a row without progress that end a run of signals; after a failure one does
_ATTEMPT = {
    "token": str, "job": str, "restarts": int, "env_steps": int, "log_bytes": int, "idle": int, "ended": bool,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Entry; expected errors become one sentence and exit code 2."""
    args = _parser().parse_args(arguments)
    try:
        if args.what == "begin":
            print(begin(args.run, args.job, args.token, args.ranks, args.source, args.set))
        elif args.what == "note":
            note_successor(RunDir(args.run), args.token, args.job)
        elif args.what == "stuck":
            stuck(RunDir(args.run), args.token)
        else:
            ending = Ending("", args.signal, args.left, args.lead, args.record, args.account, args.begun)
            print(end(args.run, args.token, args.code, args.max_restarts, args.mode, ending))
    except (BadJob, BadRun, Unreadable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {args.run} cannot be written ({error}); free space, then resume the run", file=sys.stderr)
        return 2
    return 0


def begin(folder: Path, job_id: str, token: str, ranks: int, source: str | None, overrides: list[str]) -> str:
    """Make the run ready for an attempt, from ``source`` where it does not exist yet; the count of restarts, or "done".

    Raises:
        BadRun: no run, one whose budget is used, or another SLURM job at work in it.
        BadJob: a job for another number of ranks, or too many attempts without progress; the run is then failed.
    """
    if source is not None and not (folder / "job.toml").exists():
        run = create(folder, jobs.dumps(jobs.load(source, (*overrides, f"resources.ranks={ranks}"))))
    else:
        run = open_run(folder)
    latest = _attempt(run)
    restarts = latest.get("restarts", 0) + 1 if job_id in (latest.get("job"), latest.get("successor")) else 0
    if restarts and run.read_state()["state"] == "done":  # requeued by a controller that had lost its node, say
        return "done"
    state = run.read_state()
    refuse_done(run, not jobs.load(run.job_file).budget.left(state["env_steps"], state["updates"]))
    _take_over(run)
    if source is not None and restarts == 0:  # otherwise the STOP file is from after the submission, and holds
        run.clear_stop()
    note_job(run, job_id)
    if restarts and not latest["ended"]:
        run.write_state(state="pending", cause="node lost", reason=f"{LOST} with its node; going on")
    else:
        run.write_state(state="pending", **_cause(run))  # whatever it was, it is not done or failed from here on
    try:
        _check(run, ranks)
        idle = _idle(run) if restarts else 0
        if idle >= IDLE_RESTARTS:
            raise BadJob(
                f"{idle} attempts in a row ended without progress and without an error message, so {run.path} is not "
                f"started again; see {run.logs}, then hpc-rl resume {run.path}"
            )
    except BadJob as error:
        run.write_state(state="failed", reason=str(error), cause="error", next=causes.go_on(run, "error"))
        raise
    log = run.logs / "ranks.log"
    write_json(run.path / "submit" / "attempt.json", {
        "token": token,
        "job": job_id,
        "restarts": restarts,
        "env_steps": run.read_state()["env_steps"],
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "idle": idle,
        "ended": False,
    })  # fmt: skip
    return str(restarts)


def end(folder: Path, token: str, code: int, most: int, mode: str, ending: Ending) -> str:
    """The word for the script; state.json says why, and how to go on. Raises BadRun, OSError."""
    run = open_run(folder)
    attempt = _attempt(run)
    if attempt.get("token") != token:
        return "superseded"
    state, ending = run.read_state(), replace(ending, job=attempt["job"])
    clean_up({token}, None, run)
    if state["state"] == "done":
        if code:
            print(
                f"{folder.name}: done; that its launcher ended with exit code {code} changes nothing", file=sys.stderr
            )
        return "done"
    saved = state["state"] == "stopped"
    cause, sentence = _why(run, state["reason"] if saved else None, _log_output(run, attempt), code, ending)
    word = "stopped" if saved or cause == "cancelled" else "failed"
    idle, restarts = _idle(run), attempt["restarts"]
    write_json(run.path / "submit" / "attempt.json", {**attempt, "idle": idle, "ended": True})
    if cause not in causes.FINAL and not run.stop_requested() and not _hopeless(run) and mode != "none":
        patient = saved or ending.signal or cause in causes.FROM_OUTSIDE
        if restarts and idle >= (IDLE_RESTARTS if patient else 1):
            sentence += "; a restart made no progress, so it is not started again"
        elif restarts >= most:
            sentence += f"; it was restarted {restarts} times, as often as --max-restarts allows"
        else:
            word, sentence = "again", f"{sentence}{WAITING.format(restarts + 1)}"
    print(f"{folder.name}: {sentence}", file=sys.stderr)
    command = "" if word == "again" else causes.go_on(run, cause, ending)
    run.write_state(state="pending" if word == "again" else word, reason=sentence, cause=cause, next=command)
    return word


def _why(run: RunDir, reason: str | None, output: str, code: int, ending: Ending) -> tuple[str, str]:
    """(cause, sentence); ``reason`` is that of ranks that saved."""
    if reason is not None:
        return causes.stop(run, reason, ending, output)
    if ending.signal and not rank_records(run):
        cause, event = causes.stop(run, "", ending, output)
        return cause, f"{event}; the ranks had not started"
    certain = any(record.get("ended") == "error" for record in all_records(run))
    return causes.failure(first_failure(run, output, code, {}), certain, ending, output)


def stuck(run: RunDir, token: str) -> None:
    """SLURM neither requeued the job nor took another one: the run is stopped, and its state names what goes on."""
    state = run.read_state()
    if _attempt(run).get("token") != token or state["state"] != "pending":
        return
    reason = re.sub(re.escape(WAITING).replace(r"\{\}", r"\d+"), "", state["reason"])
    sentence, command = (
        f"{reason}; SLURM neither requeued the job nor took a new one",
        causes.go_on(run, state["cause"]),
    )
    print(f"error: {sentence}; go on with: {command}", file=sys.stderr)
    run.write_state(state="stopped", reason=sentence, cause=state["cause"], next=command)


def note_successor(run: RunDir, token: str, job_id: str) -> None:
    """The job that goes on for this attempt's own: it inherits the count of restarts."""
    note_job(run, job_id)
    if (latest := _attempt(run)).get("token") == token:
        write_json(run.path / "submit" / "attempt.json", {**latest, "successor": job_id})


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
    """Raises BadJob where srun would start the wrong number of ranks, or a job that cannot be planned."""
    job = jobs.load(run.job_file)
    if job.resources.ranks != ranks:
        raise BadJob(
            f"SLURM gives {ranks} task(s) but {run.job_file} has resources.ranks = {job.resources.ranks}; "
            f"hpc-rl resume {run.path} renders the script again"
        )
    jobs.plan(job)


def _idle(run: RunDir) -> int:
    """Attempts in a row without progress, up to the latest; one that was lost with its node counts itself here."""
    latest = _attempt(run)
    if latest.get("ended", True):
        return int(latest.get("idle", 0))
    progress = run.read_state()["env_steps"] > latest["env_steps"]
    return 0 if progress else latest["idle"] + 1


def _cause(run: RunDir) -> dict[str, str]:
    """Why the latest attempt ended, which the beginning of the next one does not change."""
    state = run.read_state()
    return {key: state[key] for key in ("cause", "reason")}


def _hopeless(run: RunDir) -> bool:
    """A rank was refused before it had a seat (wrong PMI, a job that cannot be planned): it would be again."""
    return any(r.get("ended") == "error" and "pid" not in r and not r["bug"] for r in all_records(run))


def _take_over(run: RunDir) -> None:
    """Remove what earlier attempts of this run left on this host. Raises BadRun where another job uses the run."""
    jobs_of_run = job_ids(run)
    tokens = {str(record["token"]) for record in rank_records(run) if record.get("token")}
    if living := processes({token for token in tokens if token.partition("-")[0] not in jobs_of_run}):
        raise BadRun(
            f"{run.path} is in use by process {min(living)} of another job; stop it first (touch {run.path}/STOP)"
        )
    clean_up(tokens, None, run)
    for path in run.logs.glob("rank-*.json"):
        path.unlink(missing_ok=True)


def _attempt(run: RunDir) -> dict[str, Any]:
    try:
        record: dict[str, Any] = read_json(
            run.path / "submit" / "attempt.json", {**_ATTEMPT, "successor": str}, required=_ATTEMPT
        )
    except (FileNotFoundError, Unreadable):
        return {}
    return record


def _log_output(run: RunDir, attempt: dict[str, Any]) -> str:
    try:
        return read_end(run.logs / "ranks.log", begin=attempt.get("log_bytes", 0))
    except (FileNotFoundError, Unreadable):
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpc_rl.launchers.attempt", description=__doc__)
    parser.add_argument("what", choices=("begin", "end", "note", "stuck"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--job", default="0")
    parser.add_argument("--token", default="")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--source")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--signal", default="")
    parser.add_argument("--left", type=_seconds)
    parser.add_argument("--lead", type=float, default=120.0)
    parser.add_argument("--record", default="")
    parser.add_argument("--account", default="")
    parser.add_argument("--begun", type=int, default=0)
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("--mode", default="requeue")
    return parser


def _seconds(text: str) -> float | None:
    return float(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
