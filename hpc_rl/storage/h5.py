"""The one place where HDF5 files are opened, so that locking, file format and compression are decided once."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import h5py

hdf5plugin: Any = None
with suppress(ImportError):  # registers the zstd filter for readers, too
    hdf5plugin = import_module("hdf5plugin")

FORMAT = 1


def open_h5(path: Path, mode: Literal["r", "w"]) -> Any:
    """An ``h5py.File``. Raises OSError where it cannot be opened.

    Locking is best effort because network file systems often have none; each file has one writer anyway. The format of
    HDF5 1.10 carries checksums over its own metadata, so a torn header is an error and not a wrong number.
    """
    if mode == "r":
        return h5py.File(path, "r", locking="best-effort")
    return h5py.File(path, "w", locking="best-effort", libver=("v110", "v110"), rdcc_nbytes=4 << 20)


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


def discard(file: Any, temporary: Path) -> None:
    """Close and remove a file that could not be written.

    It is emptied first: HDF5 wants to write its metadata while closing, fails on a full disk and then keeps the handle
    and the space until the process ends.
    """
    with suppress(OSError, RuntimeError):
        os.truncate(temporary, 0)
        file.close()
    temporary.unlink(missing_ok=True)
