"""Datasets of an HDF5 file that a stranger may have written, or that rotted: looked at before memory is taken.

HDF5 follows a file wherever it leads: links and external storage open other files, a header may declare terabytes that
were never stored, a small chunk may unpack to gigabytes. Here a dataset is read only if it lies in this very file, as
plain numbers whose declared size its stored bytes account for, packed by a filter that writers here use. One file gives
at most `MOST_BYTES` + `RATIO` × its own size.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_rl.storage.h5 import open_h5
from hpc_rl.storage.untrusted import Unreadable, opened
from hpc_rl.types import Array

MOST_BYTES = 256 << 20
RATIO = 1100  # deflate packs 1032 bytes into one at best; zstd packs more, and writers fall back to deflate then
_SHUFFLE, _DEFLATE, _ZSTD = 2, 1, 32015
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEAD = 18  # bytes of the longest frame header


class Absent(KeyError):
    """The file has no dataset or attribute of this name."""

    def __str__(self) -> str:
        return f"there is no {self.args[0]} in it"


@contextmanager
def reading(path: Path) -> Iterator[Source]:
    """The datasets of a file.

    Raises:
        FileNotFoundError: there is no file.
        Unreadable: it is no HDF5 file, or what is read of it is damaged or foreign.
    """
    with opened(path) as raw:
        size = os.fstat(raw.fileno()).st_size
        try:
            with open_h5(path) as file:
                yield Source(path, file, raw.fileno(), size, MOST_BYTES + RATIO * size)
        except MemoryError:
            raise Unreadable("what it declares does not fit into memory") from None
        except Exception as error:  # HDF5's bindings raise whatever fits: KeyError, RuntimeError, TypeError, …
            if type(error).__module__.startswith("hpc_rl."):
                raise
            raise Unreadable(str(error) or type(error).__name__) from error


@dataclass
class Source:
    """An open file and how many bytes may still be taken from it."""

    path: Path
    file: Any
    descriptor: int
    size: int
    bytes_left: int
    _known: dict[str, Any] = field(default_factory=dict)  # datasets that were looked at

    def number(self, name: str, dataset: str = "") -> int:
        """An integer attribute of the file or of a dataset. Raises Unreadable, Absent."""
        return int(self._attribute(name, (), self._find(dataset) if dataset else self.file))

    def vector(self, name: str, length: int) -> Array:
        """An attribute of ``length`` integers, int64 [length]. Raises Unreadable, Absent."""
        values: Array = np.asarray(self._attribute(name, (length,), self.file), np.int64)
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """Declared shape of a dataset. Raises Unreadable, Absent."""
        extents: tuple[int, ...] = self._find(name).shape
        return extents

    def names(self) -> list[str]:
        """What the file names, "group/name" within a group of its top: datasets, and links that reading refuses."""
        own = [name for name in self.file if self.file.get(name, getclass=True, getlink=True) is h5py.HardLink]
        groups = {name: self.file[name] for name in own if self.file.get(name, getclass=True) is h5py.Group}
        inner = [f"{top}/{name}" for top, group in groups.items() for name in group]
        return [name for name in self.file if name not in groups] + inner

    def layout(self, name: str) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
        """Shape, dtype and chunk (the shape where it is stored whole) of a dataset. Raises Unreadable, Absent."""
        data = self._find(name)
        return data.shape, data.dtype.name, data.chunks or data.shape

    def text(self, name: str, dataset: str = "", most: int = 1024) -> str:
        """A text attribute of the file or of a dataset, at most so many letters of it; empty where there is none.

        Raises Unreadable, Absent.
        """
        value = (self._find(dataset) if dataset else self.file).attrs.get(name, "")
        return value[:most] if isinstance(value, str) else ""

    def read(self, name: str, rows: slice = slice(None), place: int | None = None) -> Array:
        """A dataset, or some of its rows, or one place on the second axis of these. Raises Unreadable, Absent."""
        data = self._find(name)
        if place is not None and (len(data.shape) < 2 or not 0 <= place < data.shape[1]):
            raise _refused(name, f"has no column {place}")
        if not data.shape:
            self._take(name, data.dtype.itemsize)
            self._stored_whole(name, data)
            return np.asarray(data[()])
        indices = range(*rows.indices(data.shape[0]))
        if indices:
            low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1])
            width = math.prod(data.shape[1 if place is None else 2 :])
            self._take(name, (high - low + 1) * width * data.dtype.itemsize)
            if data.chunks is None:
                self._stored_whole(name, data)
            else:
                self._stored_in_chunks(name, data, low, high, place)
        return np.asarray(data[rows] if place is None else data[rows, place])

    def _find(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._examined(name)
        return self._known[name]

    def _examined(self, name: str) -> Any:
        node = self.file
        for part in name.split("/"):
            key = part.encode()
            if not isinstance(node, h5py.Group) or not node.id.links.exists(key):
                raise Absent(name)
            if node.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:  # as get(getlink=True) does, four times as fast
                raise _refused(name, "is a link, and what it names may lie anywhere")
            node = node[part]
        if not isinstance(node, h5py.Dataset):
            raise _refused(name, "is not a dataset")
        plan = node.id.get_create_plist()  # before its extent: for a virtual one that opens the files it names
        if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise _refused(name, "lies in other files")
        if node.shape is None or node.dtype.kind not in "biufc":
            raise _refused(name, "does not hold plain numbers")
        return node

    def _attribute(self, name: str, shape: tuple[int, ...], node: Any) -> Any:
        if name not in node.attrs:
            raise Absent(name)
        attribute = node.attrs.get_id(name)
        if attribute.shape != shape or attribute.dtype.kind not in "iu":
            raise _refused(f"attribute {name}", f"is not {'a whole number' if not shape else 'whole numbers'}")
        return node.attrs[name]

    def _take(self, name: str, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise _refused(name, f"declares {count} bytes, too many for a file of {self.size}")

    def _stored_whole(self, name: str, data: Any) -> None:
        """What is never stored would be read as zeros, however much of it is declared."""
        contiguous = data.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        offset = data.id.get_offset() if contiguous else 0
        inside = data.nbytes == 0 or (offset is not None and offset + data.nbytes <= self.size)
        if data.id.get_storage_size() != data.nbytes or not inside:
            raise _refused(name, f"declares {data.nbytes} bytes that the file does not hold")

    def _stored_in_chunks(self, name: str, data: Any, low: int, high: int, place: int | None) -> None:
        chunk_bytes = math.prod(data.chunks) * data.dtype.itemsize
        grid = [range(-(-extent // step)) for extent, step in zip(data.shape, data.chunks, strict=True)]
        grid[0] = range(low // data.chunks[0], high // data.chunks[0] + 1)
        if place is not None:
            grid[1] = range(place // data.chunks[1], place // data.chunks[1] + 1)
        count = math.prod(map(len, grid))
        if chunk_bytes > MOST_BYTES + RATIO * self.size or count > data.id.get_num_chunks():
            raise _refused(name, f"declares {count} chunks of {chunk_bytes} bytes that the file does not hold")
        packed = self._packing(name, data)
        for cell in itertools.product(*grid):
            at = tuple(index * step for index, step in zip(cell, data.chunks, strict=True))
            chunk = data.id.get_chunk_info_by_coord(at)
            inside = chunk.byte_offset is not None and 0 < chunk.size <= self.size - chunk.byte_offset
            if not inside or not self._unpacks(chunk, packed, chunk_bytes):
                raise _refused(name, f"has a chunk at {at} that does not unpack to {chunk_bytes} bytes")

    def _packing(self, name: str, data: Any) -> list[int]:
        plan = data.id.get_create_plist()
        filters = [plan.get_filter(k)[0] for k in range(plan.get_nfilters())]
        if filters[filters[:1] == [_SHUFFLE] :] not in ([], [_DEFLATE], [_ZSTD]):
            raise _refused(name, f"is packed by the filters {filters}; zstd and deflate are read")
        return filters

    def _unpacks(self, chunk: Any, filters: list[int], chunk_bytes: int) -> bool:
        """A chunk's stored bytes promise what the dataset says. Deflate keeps within `RATIO` by itself."""
        packed = filters and filters[-1] != _SHUFFLE and not chunk.filter_mask >> (len(filters) - 1) & 1
        if not packed:
            return bool(chunk.size == chunk_bytes)
        if filters[-1] == _DEFLATE:  # noise grows a little
            return bool(chunk.size <= chunk_bytes + chunk_bytes // 100 + 1024)
        return _frame_bytes(os.pread(self.descriptor, _ZSTD_HEAD, chunk.byte_offset)) == chunk_bytes


def _refused(name: str, fault: str) -> Unreadable:
    return Unreadable(f"{name.removeprefix('arrays/')} {fault}")


def _frame_bytes(head: bytes) -> int | None:
    """How much a zstd frame unpacks to, from its header (RFC 8878, section 3.1.1.1); None where it does not say."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    flags = head[4]
    single = flags >> 5 & 1
    begin = 6 - single + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    return int.from_bytes(head[begin : begin + width], "little") + 256 * (width == 2) if width else None
