"""`hpc-rl run`: the ranks on this machine, in a session of their own, watched until they end.

Nothing here may hurt them: what is shown runs in a thread of its own, and an error of the launcher itself makes the
ranks to save and stop, waits, and only then ends them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_rl.launchers import causes, mpiexec, shared_memory
from hpc_rl.launchers.base import TOKEN_VARIABLE, Outcome, rank_command
from hpc_rl.launchers.display import Display
from hpc_rl.launchers.leftovers import clean_up, processes
from hpc_rl.launchers.postmortem import first_failure, unfinished
from hpc_rl.launchers.requests import Requests
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME, TOO_FEW, Job
from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.untrusted import Unreadable, appended, read_end

GRACE_S = 120.0  # between a request to stop and the end of ranks that do not
START_S = 60.0  # for mpiexec to start its ranks; after that they have resources.deadline_s more to begin
LEAVE_S = 60.0  # for the processes to end once everything is saved
LOOK_S = 1.0  # between looks at the process table and at state.json
_LITTLE_BYTES = 1 << 20  # a disk with less is full: a segment's chunk or a checkpoint no longer fits


@dataclass
class Attempt:
    """One start of a run, as its launcher sees it."""

    job: Job
    run: RunDir
    requests: Requests
    token: str
    begin: int  # where its part of logs/ranks.log begins, byte
    state_time: float  # when state.json had been written last, before the start
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    up: float | None = None  # when the first process of a rank was there
    seated: bool = False  # a rank has noted its role
    requested: float | None = None  # when the ranks got the request to stop
    saved: float | None = None  # when state.json showed that everything is saved
    looked: float = 0.0
    deaths: dict[int, float] = field(default_factory=dict)  # process of the rank that ended first -> unix time


def command(folder: Path, job: Job) -> list[str]:
    """What starts the job's ranks here; a single one needs no MPI at all. Raises BadJob where mpiexec cannot do it."""
    ranks, tolerant = job.resources.ranks, job.resources.tolerate_lost_actors
    launcher = [] if ranks == 1 else mpiexec.prefix(ranks, tolerant)
    return [*launcher, *rank_command(folder.resolve(), ranks)]


def launch(job: Job, run: RunDir, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Run every rank to its end; ``tick`` is called several times a second, in another thread.

    Ctrl-C, TERM, USR1 and HUP save and stop; a second Ctrl-C or TERM aborts. Nothing is left behind: no process, no
    file in /dev/shm.
    """
    run.clear_stop()
    files_before = shared_memory.present()
    # Signals before anything starts: from here on none of them orphans a rank.
    with Requests() as requests, os.fdopen(appended(run.logs / "ranks.log"), "ab") as log:
        attempt = _start(job, run, requests, log)
        over = threading.Event()
        threading.Thread(target=_note_first_death, args=(attempt, over), daemon=True).start()
        display = Display(tick, run.logs / "ranks.log", attempt.begin)
        try:
            fault = _attend(attempt, display)
        except BaseException:
            _request_stop(attempt)
            _wait(attempt)
            raise
        finally:
            over.set()
            _kill(attempt.process)
            display.close()
            full = _full(run)
            clean_up({attempt.token}, files_before, run)
    return _outcome(attempt, fault, full)


def _start(job: Job, run: RunDir, requests: Requests, log: Any) -> Attempt:
    token = secrets.token_hex(6)
    environment = {**mpiexec.environment(), TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    begin, state_time = log.tell(), run.read_state()["updated"]
    process = subprocess.Popen(
        command(run.path, job), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True,
    )  # fmt: skip
    return Attempt(job, run, requests, token, begin, state_time, process)


def _attend(attempt: Attempt, display: Display) -> str:
    """Wait for the end; why the ranks must be ended from here, in a sentence, else nothing.

    A first request is passed on as a STOP file and SIGUSR1. A second one, or ranks that do not leave, end the wait.
    """
    while attempt.process.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        if attempt.requests.first and attempt.requested is None:
            attempt.requested = now
            display.show(
                f"{attempt.requests.first}: the ranks save and stop, which may take up to {GRACE_S:.0f} s; "
                "a second Ctrl-C aborts at once, and work since the last checkpoint is lost"
            )
            _request_stop(attempt)
        if attempt.requests.abort:
            return ""
        if now - attempt.looked > LOOK_S:
            attempt.looked = now
            if fault := _late_start(attempt, now):
                return fault
            if attempt.saved is None and _has_saved(attempt):
                attempt.saved = now
        if attempt.saved is not None:
            if now - attempt.saved > LEAVE_S:
                return f"{_who(attempt)} did not leave within {LEAVE_S:.0f} s of the end"
        elif attempt.requested is not None and now - attempt.requested > GRACE_S:
            return f"{_who(attempt)} did not save within {GRACE_S:.0f} s and was ended; the last checkpoint stands"
    return ""


def _request_stop(attempt: Attempt) -> None:
    """Ask the ranks to save and stop: by the STOP file, and by a signal to those that have their handlers by now."""
    stop_written = False
    with contextlib.suppress(OSError, Unreadable):  # a full disk
        attempt.run.request_stop(attempt.requests.first or "the launcher failed")
        stop_written = True
    noted = {record["pid"] for record in rank_records(attempt.run)}
    ranks = _rank_processes(attempt.token)
    for pid in ranks & noted if stop_written else ranks:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGUSR1)


def _wait(attempt: Attempt) -> None:
    """Until the ranks have ended, a request to abort, or too long."""
    limit = time.monotonic() + GRACE_S
    while attempt.process.poll() is None and not attempt.requests.abort and time.monotonic() < limit:
        time.sleep(0.1)


def _late_start(attempt: Attempt, now: float) -> str:
    """A sentence, once the ranks should have begun long ago."""
    if attempt.seated or rank_records(attempt.run):
        attempt.seated = True
        return ""
    if attempt.up is None and _rank_processes(attempt.token):
        attempt.up = now
    ranks, launcher = attempt.job.resources.ranks, str(attempt.process.args[0])  # type: ignore[index]
    if attempt.up is None and now - attempt.began > START_S:
        return (
            f"{launcher} started none of {ranks} rank(s) within {START_S:.0f} s and was ended; "
            f"see {attempt.run.logs}/ranks.log and hpc-rl doctor"
        )
    limit = START_S + attempt.job.resources.deadline_s
    if attempt.up is not None and now - attempt.up > limit:
        return (
            f"none of {ranks} rank(s) began within {limit:.0f} s of its start, so they were ended: they waited in the "
            "start of MPI (see hpc-rl doctor), or Python loads too slowly here (raise resources.deadline_s)"
        )
    return ""


def _has_saved(attempt: Attempt) -> bool:
    """Whether this attempt has saved everything, and its processes have only to leave."""
    try:
        state = attempt.run.read_state()
    except BadRun:
        return False
    return state["state"] in ("done", "stopped") and state["updated"] != attempt.state_time


def _rank_processes(token: str) -> set[int]:
    """Those of an attempt's processes that are ranks, by their command."""
    start = [part.encode() for part in rank_command(Path(), 1)[:3]]
    pids = set()
    for pid in processes({token}):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:3] == start:
                pids.add(pid)
    return pids


def _who(attempt: Attempt) -> str:
    """The ranks that have not ended by themselves."""
    return unfinished(attempt.run) or str(attempt.process.args[0])  # type: ignore[index]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole session of mpiexec, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a disk that does not answer keeps even killed processes
        process.wait(10)


def _full(run: RunDir) -> bool:
    try:
        return shutil.disk_usage(run.path).free < _LITTLE_BYTES
    except OSError:
        return False


def _outcome(attempt: Attempt, fault: str, full: bool) -> Outcome:
    """Exit code and sentence; the run's state becomes failed unless the ranks noted how it ended.

    What they saved counts: an environment that crashes as it is closed, or ranks that do not leave, come after that.
    """
    run, code = attempt.run, attempt.process.returncode or 0
    output = _log_output(run, attempt.begin)
    lone = attempt.job.resources.ranks == 1
    if _has_saved(attempt):
        state = run.read_state()
        unexpected = code and not (attempt.requests.abort or state["lost"])
        later_failure = fault or (first_failure(run, output, code, attempt.deaths, lone) if unexpected else "")
        suffix = f"; after that {later_failure}" if later_failure else ""
        suffix = (f"; {causes.without(state['lost'])}" if state["lost"] else "") + suffix
        reason = _stopped(run, state["reason"]) if state["state"] == "stopped" else state["reason"]
        return Outcome(0, f"{reason} ({state.get('env_steps', 0):,} env steps){suffix}")
    if attempt.requests.abort:
        sentence, status = "aborted by a second signal; the last checkpoint stands", "stopped"
        cause = "cancelled"
    else:
        sentence, status = fault or first_failure(run, output, code, attempt.deaths, lone), "failed"
        cause = causes.of_failure(sentence)
        if full and "free space" not in sentence:
            sentence += f"; the disk of {run.path} is full: free space, then resume the run"
    with contextlib.suppress(OSError, BadRun):  # that disk again; the sentence reaches the user anyway
        run.write_state(state=status, reason=sentence, cause=cause, next=_going_on(run))
    return Outcome(1 if status == "failed" else 130, sentence)


def _stopped(run: RunDir, reason: str) -> str:
    """Why it stopped, with the author of the request; state.json gets it and the command that goes on."""
    cause = "time limit" if reason == OUT_OF_TIME else "budget" if reason.startswith(BUDGET_SPENT) else "signal"
    cause = "actors lost" if reason.startswith(TOO_FEW) else cause
    if cause == "signal" and run.stop_requested():
        cause, reason = causes.of_stop_file(run)
    with contextlib.suppress(OSError, BadRun):
        run.write_state(state="stopped", reason=reason, cause=cause, next=_going_on(run))
    return reason


def _going_on(run: RunDir) -> str:
    """The command that goes on, to be pasted."""
    return shlex.join(["hpc-rl", "run", str(run.job_file), "--out", str(run.path), "--resume"])


def _log_output(run: RunDir, begin: int) -> str:
    try:
        return read_end(run.logs / "ranks.log", begin=begin)
    except (OSError, Unreadable):  # removed meanwhile
        return ""


def _note_first_death(attempt: Attempt, over: threading.Event) -> None:
    """Note the process of the rank that ended first (or several within one look), and when.

    mpiexec kills the other ranks within milliseconds and then may name any of them.
    """
    watched: dict[int, int] = {}
    poller = select.poll()
    while not over.is_set() and not attempt.deaths:
        if len(watched) < attempt.job.resources.ranks:
            for record in rank_records(attempt.run):
                if record["pid"] not in watched.values():
                    with contextlib.suppress(OSError):  # it is gone already, or this kernel has no pidfd
                        handle = os.pidfd_open(record["pid"])
                        watched[handle] = record["pid"]
                        poller.register(handle, select.POLLIN)
        attempt.deaths.update((watched[handle], time.time()) for handle, _ in poller.poll(100))
    for handle in watched:
        os.close(handle)
