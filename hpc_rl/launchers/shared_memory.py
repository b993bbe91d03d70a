"""Files in /dev/shm that ranks leave behind when they are killed: MPI's own, and the weights that a node shares."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

SHARED = Path("/dev/shm")
OURS = "hpc_rl-"  # followed by the attempt's token
_OF_MPI = re.compile(r"mpich_shm|ucx_shm|.*vader|sm_segment|psm2_shm")  # not psm_: those are any Python program's
FRESH_S = 5.0  # a file so young may be about to be mapped


def present() -> set[Path]:
    return set(SHARED.iterdir()) if SHARED.is_dir() else set()


def remove(tokens: Iterable[str], named: Iterable[str], new: Iterable[Path]) -> None:
    """Remove the weights of these attempts, and of the files of MPI those that nobody maps.

    ``named`` are the files that ranks said they map, ``new`` those that appeared while they ran.
    """
    ours = {path for token in tokens for path in SHARED.glob(f"{OURS}{token}-*")}
    mpi = {path for path in new if _OF_MPI.match(path.name)} | {Path(name) for name in named}
    for path in ours | _unmapped(mpi):
        path.unlink(missing_ok=True)


def clear() -> None:
    """Before MPI starts on this node: remove what this user's killed ranks left here.

    MPICH names its segment after SLURM's job and step, which a requeued job shares with the attempt before; it finds
    the old one in its way and ends with "Out of memory". The batch script sweeps only the node on which it runs.
    """
    found = set()
    for path in present():
        with contextlib.suppress(OSError):
            about = path.stat()
            mine = about.st_uid == os.getuid() and time.time() - about.st_mtime > FRESH_S
            if mine and (path.name.startswith(OURS) or _OF_MPI.match(path.name)):
                found.add(path)
    for path in _unmapped(found):
        with contextlib.suppress(OSError):  # the other ranks of this node do the same
            path.unlink()


def _unmapped(paths: set[Path]) -> set[Path]:
    """Those that no living process maps: the others are at work, perhaps in another job."""
    if not paths:
        return set()
    mapped: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped.update(re.findall(r"/dev/shm/\S+", maps.read_text()))
    return {path for path in paths if str(path) not in mapped}
