"""What an attempt may leave on this machine: processes, files in node-shared memory, half-written files."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from hpc_rl.launchers import shared_memory
from hpc_rl.launchers.base import TOKEN_VARIABLE
from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import BadRun, RunDir


def take_over(run: RunDir) -> None:
    """Make a run ready for another attempt: remove what an attempt that was killed left behind.

    Raises:
        BadRun: ranks of an earlier attempt are still at work on this machine; two would spoil each other's files.
    """
    records = rank_records(run)
    tokens = {str(record["token"]) for record in records if record.get("token")}
    if living := processes(tokens):
        raise BadRun(f"{run.path} is in use by process {min(living)}; stop it first (touch {run.path}/STOP)")
    clean_up(tokens, None, run)
    for path in run.logs.glob("rank-*.json"):  # also those that no record could be read from
        path.unlink(missing_ok=True)


def clean_up(tokens: set[str], before: set[Path] | None, run: RunDir) -> None:
    """Kill ranks that outlived mpiexec (in sessions of their own), remove what they left in /dev/shm and half-written.

    MPI's own files are those the ranks noted as mapped, and those absent ``before``; never one that is in use. What
    cannot be removed stays: this never raises for a file.
    """
    deadline = time.monotonic() + 10
    while (living := processes(tokens)) and time.monotonic() < deadline:
        for pid in living:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        for path in run.trajectories.glob("*/segment-*.h5.tmp"):
            path.unlink(missing_ok=True)
    new_files = set() if before is None else shared_memory.present() - before
    names = [name for record in rank_records(run) for name in record.get("shared", ())]
    shared_memory.remove(tokens, names, new_files)


def processes(tokens: set[str]) -> set[int]:
    """Living processes of these attempts on this machine: mpiexec's helpers, ranks, and what those started."""
    marks = {f"{TOKEN_VARIABLE}={token}".encode() for token in tokens}
    pids = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if not marks.isdisjoint(path.read_bytes().split(b"\0")):
                pids.add(int(path.parent.name))
    return pids
