"""`hpc-rl run`: mpiexec on this machine, in a session of its own, watched until it ends."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_rl.job import BadJob, Job
from hpc_rl.launchers import shared_memory
from hpc_rl.launchers.base import TOKEN_VARIABLE, Outcome, rank_command
from hpc_rl.launchers.blame import blame, rank_records
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.untrusted import appended, read_end

GRACE_S = 120.0  # between being asked to stop and being killed
_LITTLE_BYTES = 1 << 20  # a disk with less is full: a segment's chunk or a checkpoint no longer fits
_ROOT_SETTINGS = {
    f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1" for prefix in ("OMPI", "PRTE") for suffix in ("", "_CONFIRM")
}


def find_mpiexec(python: str = sys.executable) -> tuple[str, str]:
    """(path, vendor "mpich" or "openmpi") of the mpiexec that belongs to a Python, else of the first on PATH.

    Raises:
        BadJob: there is none.
    """
    beside = Path(python).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        raise BadJob(
            "no mpiexec found; install the extra with its own MPI (pip install 'hpc-rl[mpi]') or load a module"
        )
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    return path, "openmpi" if re.search("open.?mpi|prte|prrte", said, re.IGNORECASE) else "mpich"


def command(folder: Path, ranks: int) -> list[str]:
    """What starts ``ranks`` ranks here; a single one needs no MPI at all."""
    if ranks == 1:
        return rank_command(folder.resolve(), 1)
    path, vendor = find_mpiexec()
    extra = ["--oversubscribe", "--bind-to", "none"] if vendor == "openmpi" else []
    return [path, *extra, "-n", str(ranks), *rank_command(folder.resolve(), ranks)]


def launch(job: Job, run: RunDir, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Run every rank to its end; ``tick`` is called several times a second. Ctrl-C, TERM and USR1 save and stop.

    A second signal aborts. Nothing is left behind: no process, no file in /dev/shm.
    """
    run.clear_stop()
    token = secrets.token_hex(6)
    ranks = job.resources.ranks
    environment = {**os.environ, **_ROOT_SETTINGS, TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    before = shared_memory.present()
    requests = _watch_signals()  # before anything starts: a signal from here on stops the run and orphans nobody
    with os.fdopen(appended(run.logs / "ranks.log"), "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command(run.path, ranks), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        over = threading.Event()
        requests["dead"] = {}
        threading.Thread(target=_note_first_death, args=(run, ranks, requests["dead"], over), daemon=True).start()
        try:
            _attend(process, run, requests, tick, begin)
        finally:
            over.set()
            _kill(process)
            _restore(requests)
            full = shutil.disk_usage(run.path).free < _LITTLE_BYTES
            sweep({token}, before, run)
    tick()
    return _outcome(run, process.returncode, begin, requests, full)


def take_over(run: RunDir) -> None:
    """Make a run ready for another attempt: remove what an attempt that was killed left behind.

    Raises:
        BadRun: ranks of an earlier attempt are still at work on this machine; two would spoil each other's files.
    """
    records = rank_records(run)
    tokens = {str(record["token"]) for record in records if record.get("token")}
    if living := processes(tokens):
        raise BadRun(
            f"{run.path} is still being worked on by process {min(living)}; stop it first (touch {run.path}/STOP)"
        )
    sweep(tokens, None, run)
    for path in run.logs.glob("rank-*.json"):  # also those that no record could be read from
        path.unlink()


def _watch_signals() -> dict[str, Any]:
    requests: dict[str, Any] = {"count": 0, "old": {}}

    def arrived(number: int, frame: Any) -> None:
        requests["count"] += 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        requests["old"][number] = signal.signal(number, arrived)
    return requests


def _restore(requests: dict[str, Any]) -> None:
    for number, handler in requests["old"].items():
        signal.signal(number, handler)


def _attend(
    process: subprocess.Popen[bytes], run: RunDir, requests: dict[str, Any], tick: Callable[[], None], read: int
) -> None:
    """Wait for the end; pass one request on as a STOP file and SIGUSR1, take a second one as an abort."""
    asked: float | None = None
    while process.poll() is None:
        tick()
        read = _pass_warnings_on(run, read)
        time.sleep(0.1)
        if requests["count"] and asked is None:
            asked = time.monotonic()
            run.request_stop()
            for record in rank_records(run):
                with contextlib.suppress(OSError):
                    os.kill(record["pid"], signal.SIGUSR1)
        if asked is not None and (requests["count"] > 1 or time.monotonic() - asked > GRACE_S):
            return
    _pass_warnings_on(run, read)


def _pass_warnings_on(run: RunDir, read: int) -> int:
    """Show what the ranks have warned of since byte ``read`` of their log; how far it has been read now."""
    with (run.logs / "ranks.log").open("rb") as log:
        log.seek(read)
        fresh = log.read()
    whole = fresh[: fresh.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if line.startswith("warning: "):
            print(line, file=sys.stderr, flush=True)
    return read + len(whole)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole session of mpiexec, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def sweep(tokens: set[str], before: set[Path] | None, run: RunDir) -> None:
    """Kill ranks that outlived mpiexec (in sessions of their own), remove what they left in /dev/shm and half-written.

    MPI's own files are those the ranks said they map, and new ones since ``before``; never one that somebody maps.
    """
    deadline = time.monotonic() + 10
    while (living := processes(tokens)) and time.monotonic() < deadline:
        for pid in living:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for path in run.trajectories.glob("*/segment-*.h5.tmp"):
        path.unlink(missing_ok=True)
    new = set() if before is None else shared_memory.present() - before
    named = [name for record in rank_records(run) for name in record.get("shared", ())]
    shared_memory.remove(tokens, named, new)


def processes(tokens: set[str]) -> set[int]:
    """Living processes of these attempts on this machine: mpiexec's helpers, ranks, and what those started."""
    marks = {f"{TOKEN_VARIABLE}={token}".encode() for token in tokens}
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if not marks.isdisjoint(path.read_bytes().split(b"\0")):
                found.add(int(path.parent.name))
    return found


def _outcome(run: RunDir, code: int, begin: int, requests: dict[str, Any], full: bool) -> Outcome:
    """Exit code and sentence; the run's state becomes failed unless the ranks said how it ended."""
    state = run.read_state()
    if code == 0 and state.get("state") in ("done", "stopped"):
        return Outcome(0, f"{state['reason']} ({state.get('env_steps', 0):,} env steps)")
    said = read_end(run.logs / "ranks.log", begin=begin)
    if requests["count"] > 1:
        sentence, status = "aborted by a second signal; the last checkpoint stands", "stopped"
    else:
        sentence, status = blame(run, said, code, requests["dead"]), "failed"
        if full and "free space" not in sentence:
            sentence += f"; the disk of {run.path} is full: free space, then resume the run"
    with contextlib.suppress(OSError):  # that disk again; the user hears it anyway
        run.write_state(state=status, reason=sentence)
    return Outcome(1 if status == "failed" else 130, sentence)


def _note_first_death(run: RunDir, ranks: int, dead: dict[int, float], over: threading.Event) -> None:
    """Put into ``dead`` the process of the rank that ended first (or several within one look), and when.

    mpiexec kills the other ranks within milliseconds and then may name any of them.
    """
    watched: dict[int, int] = {}
    poller = select.poll()
    while not over.is_set() and not dead:
        if len(watched) < ranks:
            for record in rank_records(run):
                if record["pid"] not in watched.values():
                    with contextlib.suppress(OSError):  # it is gone already, or this kernel has no pidfd
                        handle = os.pidfd_open(record["pid"])
                        watched[handle] = record["pid"]
                        poller.register(handle, select.POLLIN)
        dead.update((watched[handle], time.time()) for handle, _ in poller.poll(100))
    for handle in watched:
        os.close(handle)
