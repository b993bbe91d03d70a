"""Files in /dev/shm that ranks leave behind when they are killed: MPI's own, and the weights that a node shares."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path

SHARED = Path("/dev/shm")
OURS = "hpc_rl-"  # followed by the attempt's token
_OF_MPI = re.compile(r"mpich_shm|ucx_shm|.*vader|sm_segment|psm2_shm")  # not psm_: those are any Python program's
_TOKEN = re.compile(r"[\w-]+", re.ASCII)
FRESH_S = 5.0  # a file so young may be about to be mapped


def present() -> set[Path]:
    return set(SHARED.iterdir()) if SHARED.is_dir() else set()


def remove(tokens: Iterable[str], named: Iterable[str], new: Iterable[Path]) -> None:
    """Remove the weights of these attempts, and of the files of MPI those that nobody maps: this user's alone.

    ``named`` are the files that ranks noted to map, ``new`` those that appeared while they ran. Notes lie in a run
    directory, where anybody may have written them: they choose among the files of this folder, and name no others.
    """
    begins = tuple(f"{OURS}{token}-" for token in tokens if _TOKEN.fullmatch(token))
    here = _mine(present())
    ours = {path for path in here if path.name.startswith(begins)}
    chosen = {str(path) for path in new} | set(named)
    mpi = {path for path in here if str(path) in chosen and _OF_MPI.match(path.name)}
    for path in ours | _unmapped(mpi):
        with contextlib.suppress(OSError):  # another sweep was first
            path.unlink()


def clear() -> None:
    """Before MPI starts on this node: remove what this user's killed ranks left here.

    MPICH names its segment after SLURM's job and step, which a requeued job shares with the attempt before; it finds
    the old one in its way and ends with "Out of memory". The batch script sweeps only the node on which it runs.
    """
    found = {path for path in _mine(present(), FRESH_S) if path.name.startswith(OURS) or _OF_MPI.match(path.name)}
    for path in _unmapped(found):
        with contextlib.suppress(OSError):  # the other ranks of this node do the same
            path.unlink()


def _mine(paths: set[Path], older_s: float = -math.inf) -> set[Path]:
    """Those that are ordinary files of this user, not written to for so long."""
    mine = set()
    for path in paths:
        with contextlib.suppress(OSError):
            about = path.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid() and time.time() - about.st_mtime > older_s:
                mine.add(path)
    return mine


def _unmapped(paths: set[Path]) -> set[Path]:
    """Those that no living process maps: the others are at work, perhaps in another job."""
    if not paths:
        return set()
    mapped: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped.update(re.findall(r"/dev/shm/\S+", maps.read_text()))
    return {path for path in paths if str(path) not in mapped}
