"""What this file system does with HDF5's file locks; `hpc-rl doctor` reports it.

``python -m hpc_rl.storage.locking FOLDER`` prints the answer: where a lock service is dead, the question waits forever.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import tempfile
from pathlib import Path

import h5py

from hpc_rl.storage.h5 import NO_LOCKS


def hdf5_version() -> str:
    """Version of the HDF5 library behind h5py."""
    version: str = h5py.version.hdf5_version
    return version


def check_locking(folder: Path) -> tuple[str, str]:
    """ "works", "ignored" (a second writer gets the lock, too) or "absent" (HDF5 cannot lock at all), and why.

    Raises:
        OSError: the folder cannot be written, or HDF5 cannot make a file there for another reason.
    """
    with tempfile.TemporaryDirectory(prefix=".hpc_rl-doctor-", dir=folder) as scratch:
        path = Path(scratch) / "locked.h5"
        path.touch()  # a folder that cannot be written is an error of its own
        try:
            file = h5py.File(path, "w", locking=True)
        except OSError as error:
            return _absent(error)
        with file:
            other = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return "works", ""
            except OSError as error:  # HDF5's variable switched its locks off, so this is the first attempt
                return _absent(error)
            finally:
                os.close(other)
        return "ignored", ""


def _absent(error: OSError) -> tuple[str, str]:
    if error.errno not in NO_LOCKS:
        raise error
    return "absent", f"{errno.errorcode[error.errno]}, {os.strerror(error.errno)}"


if __name__ == "__main__":
    try:
        print(json.dumps(check_locking(Path(sys.argv[1]))))
    except OSError as error:
        sys.exit(f"{sys.argv[1]} cannot be written ({error.strerror or error})")
