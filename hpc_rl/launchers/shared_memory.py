"""Files in /dev/shm that ranks leave behind when they are killed: MPI's own, and the weights that a node shares.

A file goes only if it is this package's by name, belongs to this user, and no process at all can still write to it. The
kernel answers that last question by a lease, also where the other processes cannot be seen from here: in a container
that shares /dev/shm with its host but not the process table. Nothing here raises: a file that cannot be removed stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

SHARED = Path("/dev/shm")
OURS = "hpc_rl-"  # followed by the attempt's token
_OF_MPI = re.compile(r"mpich_shm|ucx_shm|.*vader|sm_segment|psm2_shm")  # not psm_: those are any Python program's
FRESH_S = 5.0  # a file so young may be about to be mapped
_TOKEN = re.compile(r"[\w-]+", re.ASCII)
_GONE_S = 2.0  # a killed process may take as long to let its files go
_INITIAL_PIDS = "pid:[4026531836]"  # the process table of the machine itself, by the kernel's fixed number


def present() -> set[Path]:
    try:
        return set(SHARED.iterdir())
    except OSError:  # not there, or not to be read
        return set()


def remove(tokens: Iterable[str], names: Iterable[str], new_files: Iterable[Path]) -> None:
    """Remove the weights of these attempts and files of MPI, where no process uses them.

    ``names`` are the files that ranks noted to map, ``new_files`` those that appeared while they ran. Notes lie in a
    run directory, which may be a stranger's: they choose among the files of this folder, and name no others.
    """
    begins = tuple(f"{OURS}{token}-" for token in tokens if _TOKEN.fullmatch(token))
    files, noted = present(), set(names)
    certain = {path for path in files if path.name.startswith(begins) or (str(path) in noted and _of_mpi(path))}
    certain = {path for path in certain if _mine(path)}
    limit = time.monotonic() + _GONE_S
    while certain and time.monotonic() < limit:
        _unlink(_unused(certain))
        certain = {path for path in certain if path.exists()}
        time.sleep(0.02 if certain else 0)
    _unlink(_unused({path for path in files.intersection(new_files) if _of_mpi(path)}))


def clear() -> None:
    """Before MPI starts on this node: remove what this user's killed ranks left here.

    MPICH names its segment after SLURM's job and step, which a requeued job shares with the attempt before; it finds
    the old one in its way and ends with "Out of memory". The batch script sweeps only the node on which it runs.
    """
    old_files = set()
    for path in present():
        if path.name.startswith(OURS) or _of_mpi(path):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > FRESH_S:
                    old_files.add(path)
    _unlink(_unused(old_files))


def _of_mpi(path: Path) -> bool:
    return _OF_MPI.match(path.name) is not None


def _mine(path: Path) -> bool:
    """Whether it is an ordinary file of this user."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid()


def _unlink(paths: set[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # the other ranks of this node do the same
            path.unlink()


def _unused(paths: set[Path]) -> set[Path]:
    """Those that are ordinary files of this user and that no living process uses: the others may be at work."""
    return {path for path in paths if _mine(path) and not _used(path)}


def _used(path: Path) -> bool:
    """Whether a process has the file open or mapped for writing; assumed where it cannot be found out."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)  # if it is opened now; the default, SIGIO, ends this process
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # granted only where no process may write, as MPI does
        return False
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES) or _mapped(path)
    finally:
        os.close(handle)  # gives the lease back


def _mapped(path: Path) -> bool:
    """The same on a kernel without leases: whether a process maps it; assumed where processes may be hidden."""
    try:
        if os.readlink("/proc/self/ns/pid") != _INITIAL_PIDS:
            return True
    except OSError:
        return True
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if re.search(rf" {re.escape(str(path))}$", maps.read_text(), re.MULTILINE):
                return True
    return False
