"""The end of a rank that fails: a sentence or a traceback for the user, and the end of all other ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from hpc_rl.storage.rank_records import write_record

ABORT_S = 30  # for the end of all ranks, once one has failed
_TRACE = 100_000  # letters of a traceback that are kept; a message may hold a whole array
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def end_all(folder: Path, rank: int, error: BaseException) -> None:
    """Put the reason into the rank's file and on stderr, then end the whole job: the others would only wait for us."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ABORT_S)  # an abort that hangs must not keep this rank
    try:
        sentence, trace, bug = _described(folder, error)
        end = {"ended": "error", "time": time.time(), "error": sentence, "bug": bug, "trace": trace}
        text = trace if bug else f"rank {rank}: {sentence}"
        # Each by itself: the log may lie on the very disk that is full, and the others are ended all the same.
        with contextlib.suppress(Exception):
            write_record(folder, rank, end)
        with contextlib.suppress(Exception):
            print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if int(sys.argv[2]) > 1 and "hpc_rl.transport.mpi" in sys.modules:
            from hpc_rl.transport import mpi

            mpi.abort(1)
    finally:
        os._exit(1)


def _described(folder: Path, error: BaseException) -> tuple[str, str, bool]:
    """(sentence, traceback, whether it is a bug): the exceptions of this package are sentences for the user."""
    trace = "".join(traceback.format_exception(error))[-_TRACE:]
    try:
        text = str(error)
    except Exception as broken:  # an environment's exception may fail as it is printed
        text = f"(its text cannot be had: {type(broken).__name__})"
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{folder} cannot be written ({text}); free space or make it writable, then resume the run", trace, False
    if type(error).__module__.startswith("hpc_rl"):
        return text, trace, False
    return f"{type(error).__name__}: {text}", trace, True
