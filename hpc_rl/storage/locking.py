"""What this file system does with HDF5's file locks; `hpc-rl doctor` reports it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import h5py


def hdf5_version() -> str:
    """Version of the HDF5 library behind h5py."""
    version: str = h5py.version.hdf5_version
    return version


def check_locking(folder: Path) -> str:
    """ "works", "ignored" (a second writer gets the lock, too) or "absent" (HDF5 cannot lock at all).

    Raises:
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".hpc_rl-doctor-", dir=folder) as scratch:
        path = Path(scratch) / "locked.h5"
        path.touch()  # a folder that cannot be written is an error of its own
        try:
            file = h5py.File(path, "w", locking=True)
        except OSError:
            return "absent"
        with file:
            other = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return "works"
            finally:
                os.close(other)
        return "ignored"
