"""The one place where HDF5 files are opened, so that locking, file format and compression are decided once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py

from hpc_rl.storage.untrusted import created

hdf5plugin: Any = None
with suppress(ImportError):  # registers the zstd filter for readers, too
    hdf5plugin = import_module("hdf5plugin")

FORMAT = 1
LOCKING_VARIABLE = "HDF5_USE_FILE_LOCKING"  # of HDF5, stronger than what a program asks for
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what flock answers where there are none


def open_h5(path: Path) -> Any:
    """An ``h5py.File`` for reading. Raises OSError where it cannot be opened.

    No lock is taken: a file with this name is complete and never written again, and network file systems without a
    lock service answer ENOLCK or EOPNOTSUPP, which HDF5's "best-effort" does not forgive.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        forced = os.environ.get(LOCKING_VARIABLE)
        if error.errno not in NO_LOCKS or forced is None:
            raise
        sentence = f"{LOCKING_VARIABLE}={forced} asks for file locks, which {path.parent} does not have; unset it"
        raise OSError(error.errno, sentence) from error


def remedy(error: BaseException) -> str:
    """What to do about a file that could not be written."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_LOCKS:
        return "see hpc-rl doctor"
    return "free space" if number in (errno.ENOSPC, errno.EDQUOT) else "free space or make the folder writable"


def create_h5(path: Path) -> tuple[Any, Sink]:
    """An ``h5py.File`` for writing and the sink below it, to be ended by ``finish`` or ``discard``. Raises OSError.

    The format of HDF5 1.10 carries checksums over its own metadata, so a torn header is an error, not a wrong number.
    """
    sink = Sink(path)
    return h5py.File(sink, "w", libver=("v110", "v110"), rdcc_nbytes=4 << 20), sink


def finish(file: Any, sink: Sink) -> None:
    """Close a file that was written. Raises the OSError that any of its writes met."""
    file.close()
    sink.close()
    sink.check()


def discard(file: Any, sink: Sink, path: Path) -> None:
    """Close and remove a file that could not be written."""
    with suppress(OSError, RuntimeError):
        file.close()
    sink.close()
    path.unlink(missing_ok=True)


class Sink:
    """The file below an ``h5py.File``, whose writes never fail but are remembered as failed.

    HDF5 does not recover from a write error: on a full disk ``close`` fails too, the handle stays open and the process
    may crash minutes later. So every write reports success to HDF5, and ``check`` raises the error.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = created(path)
        self._at = self._size = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error, if any."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._guarded(lambda: os.close(descriptor))  # network file systems report a full disk here

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        data = os.pread(self._descriptor, count, self._at)
        self._at += len(data)
        return data

    def write(self, data: Any) -> int:
        view, begin = memoryview(data).cast("B"), self._at
        self._at += len(view)
        self._size = max(self._size, self._at)
        self._guarded(lambda: _write_all(self._descriptor, view, begin))
        return len(view)

    def truncate(self, size: int) -> int:
        self._size = size
        self._guarded(lambda: os.ftruncate(self._descriptor, size))
        return size

    def flush(self) -> None:
        """Nothing is buffered here; ``publish`` syncs."""

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._error = self._error or error


def _write_all(descriptor: int, view: memoryview, begin: int) -> None:
    count = 0
    while count < len(view):
        count += os.pwrite(descriptor, view[count:], begin + count)


def compressed(name: str, itemsize: int) -> dict[str, Any]:
    """Dataset options for "zstd", "gzip" or "none"; zstd becomes gzip where hdf5plugin is not installed.

    Raises:
        ValueError: another name.
    """
    if name not in ("zstd", "gzip", "none"):
        raise ValueError(f"compression {name!r} is unknown; choose zstd, gzip or none")
    if name == "none":
        return {}
    options = {"shuffle": itemsize > 1}  # bytes of equal weight side by side: worth little for pixels, much for floats
    if name == "zstd" and hdf5plugin is not None:
        return options | dict(hdf5plugin.Zstd(clevel=1))
    return options | {"compression": "gzip", "compression_opts": 1}
