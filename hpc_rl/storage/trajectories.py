"""Recorded trajectories: HDF5 segments, each one long fragment of the same Schema with T = N moves.

Fragments of a rank follow each other like this (T = 3, stack = 2; the rows that a fragment adds are in brackets)::

    step  [0 1 2]              edge  [0 1 2] 3              frame  [f 0 1 2] 3          f: older frames in row 0's stack
                 [3 4 5]                    [3 4 5] 6                     2 [3 4 5] 6

The last row of edges and frames is added only when the segment closes, because the next fragment repeats it. Where an
episode began just before a fragment, its first frames differ from the rows before (the environment's own stack is
padded there): the first fragment of a segment keeps its own, later ones are rebuilt from ``first`` as in
``fragments.stacked``. Leaves without rows are those of the first fragment, from which the others' follow; but what
every fragment draws anew, "noise", has a row for each of the F fragments, [F, b, M], and "fragment_row" [F] says with
which move each begins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpc_rl.storage.h5 import FORMAT, Sink, compressed, create_h5, discard, finish, open_h5, remedy
from hpc_rl.storage.run_dir import publish
from hpc_rl.storage.segments import FILE, number
from hpc_rl.types import Array, Leaf, Schema, Spec, Tree

_CHUNK_BYTES = 1 << 20
_BUFFER_BYTES = 32 << 20
_DRAWN = "noise"  # the leaf that every fragment draws anew


class RecordingFailed(RuntimeError):
    """A segment could not be written; closed segments are untouched."""


@dataclass
class _Series:
    """A dataset that grows by whole chunks: rows wait in ``buffer``, so that each chunk is compressed once."""

    leaf: Leaf
    chunk: tuple[int, ...]
    buffer: Array  # [chunk rows, b, …]
    data: Any = None  # h5py.Dataset of the open segment
    filled: int = 0
    last: Array | None = None  # [1, b, …] the newest fragment's last row, added only when the segment closes

    def append(self, rows: Array) -> None:
        offset = 0
        while offset < len(rows):
            count = min(len(rows) - offset, len(self.buffer) - self.filled)
            self.buffer[self.filled : self.filled + count] = rows[offset : offset + count]
            self.filled, offset = self.filled + count, offset + count
            if self.filled == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        if self.filled:
            start = self.data.shape[0]
            self.data.resize(start + self.filled, axis=0)
            self.data[start:] = self.buffer[: self.filled]
            self.filled = 0


class Recorder:
    """Writes this rank's fragments as segments below ``directory`` = trajectories/a<attempt>-<role>-<index>.

    Args:
        columns: [b] int32, global column numbers of this rank, in the order of the fragments' column axis.
        keep: [b] bool, which of them are recorded.
        segment_bytes, segment_s: a segment is rolled once its file is this large or it has been open this long.
        attributes: written to every segment.

    Attributes:
        bytes_written: bytes of recorded leaves before compression. seconds: time spent in ``write`` and ``roll``.
    """

    def __init__(
        self,
        directory: Path,
        schema: Schema,
        spec: Spec,
        columns: Array,
        keep: Array,
        attempt: int,
        segment_bytes: int = 256 << 20,
        segment_s: float = 600.0,
        compression: Literal["zstd", "gzip", "none"] = "zstd",
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        self.bytes_written, self.seconds = 0, 0.0
        self._directory, self._schema, self._spec, self._attempt = directory, schema, spec, attempt
        self._segment_bytes, self._segment_s, self._compression = segment_bytes, segment_s, compression
        self._attributes = dict(attributes or {})
        self._keep = np.asarray(keep, bool)
        self._columns = np.asarray(columns, np.int32)[self._keep]
        # a slice is a view, an index array a copy; most jobs record every column
        self._pick: Any = slice(None) if self._keep.all() else np.flatnonzero(self._keep)
        self._series = {
            name: _series(leaf, len(self._columns))
            for name, leaf in schema.items()
            if (leaf.rows != "fragment" or name == _DRAWN) and len(self._columns)
        }
        self._begins: list[int] = []  # the move of the open segment with which each of its fragments begins
        self._moves = 0  # of the open segment
        self._file: Any = None
        self._sink: Sink | None = None
        self._failed = ""
        self._number = 0
        self._opened = 0.0
        self._start = np.zeros(len(self._keep), np.int64)  # step number at row 0 of the open segment
        self._next: Array | None = None  # step number after the newest fragment
        self._closed = np.zeros(len(self._keep), np.int64)

    @property
    def closed(self) -> Array:
        """int64 [b]: each column's env-step number up to which everything is on disk under its final name.

        A column that is not recorded counts as far as it was written, since no checkpoint waits for it. Zeros before
        the first ``write``.
        """
        return self._closed.copy()

    def write(self, tree: Tree) -> None:
        """Append one fragment; ``tree`` may be views into message memory, nothing of it is kept.

        Raises:
            RecordingFailed: the disk is full or the folder cannot be written; every later call raises, too.
        """
        begin_s = time.perf_counter()
        start = np.array(tree["start"], np.int64)
        if self._next is None:
            self._closed = start.copy()
        elif (start != self._next)[self._keep].any():
            self._guarded(self._close)  # a gap: a segment has none inside, so it stays visible between two
            self._closed = start.copy()
        self._next = start + (~tree["first"][1:].astype(bool)).sum(0)
        self._closed[~self._keep] = self._next[~self._keep]
        if self._series:
            self._guarded(lambda: self._append(tree, start))
        self.seconds += time.perf_counter() - begin_s

    def roll(self) -> None:
        """Close the open segment, if any: flush, read back, sync, rename. Raises RecordingFailed."""
        begin_s = time.perf_counter()
        self._guarded(self._close)
        self.seconds += time.perf_counter() - begin_s

    def close(self) -> None:
        """Roll. A recorder that failed has nothing left to close."""
        if not self._failed:
            self.roll()

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failed:
            raise RecordingFailed(self._failed)
        try:
            action()
        except (OSError, RuntimeError) as error:  # HDF5 uses both
            path = self._path(temporary=True)
            reason = str(error).rstrip(".")
            self._failed = (
                f"{path} cannot be written ({reason}); {remedy(error)} or lower output.record, then resume the run"
            )
            if self._sink is not None:
                discard(self._file, self._sink, path)
            raise RecordingFailed(self._failed) from error

    def _append(self, tree: Tree, start: Array) -> None:
        fresh = self._file is None
        if fresh:
            self._open(tree, start)
        moves = len(tree["first"]) - 1
        for name, series in self._series.items():
            rows = tree[name][None] if series.leaf.rows == "fragment" else tree[name]
            overlap = {"step": 0, "edge": 1, "frame": self._spec.stack, "fragment": 0}[series.leaf.rows]
            if len(rows) != moves + overlap and series.leaf.rows != "fragment":
                raise ValueError(f"leaf {name!r} has {len(rows)} rows; {moves} moves need {moves + overlap}")
            overlap_rows = 0 if fresh else max(overlap - 1, 0)  # rows that the fragment before has written
            series.append(rows[overlap_rows : len(rows) - min(overlap, 1), self._pick])
            series.last = rows[-1:, self._pick].copy() if overlap else None
            self.bytes_written += (len(rows) - overlap) * series.buffer[0].nbytes
        self._begins.append(self._moves)
        self._moves += moves
        assert self._sink is not None
        self._sink.check()
        too_old = time.monotonic() - self._opened >= self._segment_s
        if too_old or self._file.id.get_filesize() >= self._segment_bytes:
            self._close()

    def _open(self, tree: Tree, start: Array) -> None:
        if self._number == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            numbers = [number(path) for path in self._directory.iterdir() if FILE.fullmatch(path.name)]
            self._number = max(numbers, default=-1) + 1
        self._file, self._sink = create_h5(self._path(temporary=True))
        self._opened, self._start = time.monotonic(), start
        self._begins, self._moves = [], 0
        for name, leaf in self._schema.items():
            if name in self._series:
                data = self._create(name, self._series[name])
            else:
                data = self._file.create_dataset(name, data=tree[name][self._pick])
            data.attrs.update({"unit": leaf.unit, "doc": leaf.doc, "rows": leaf.rows})

    def _create(self, name: str, series: _Series) -> Any:
        empty, dtype = (0, *series.buffer.shape[1:]), series.buffer.dtype
        grow = (None, *empty[1:])
        options = compressed(self._compression, dtype.itemsize)
        series.data = self._file.create_dataset(name, empty, dtype, maxshape=grow, chunks=series.chunk, **options)
        return series.data

    def _close(self) -> None:
        if self._file is None:
            return
        assert self._next is not None and self._sink is not None
        expected = {}
        for name, series in self._series.items():
            if series.last is not None:
                series.append(series.last)
            end = series.buffer[series.filled - 1].copy() if series.filled else series.last
            series.flush()
            expected[name] = (len(series.data), end)
        if _DRAWN in self._series:
            data = self._file.create_dataset("fragment_row", data=np.array(self._begins, np.int64))
            data.attrs.update({"unit": "", "doc": "the move with which each fragment begins", "rows": "fragment"})
        self._file.attrs.update(self._header())
        finish(self._file, self._sink)
        _verify(self._path(temporary=True), expected)
        publish(self._path(temporary=True), self._path())
        self._file = self._sink = None
        self._number += 1
        self._closed = self._next.copy()

    def _header(self) -> dict[str, Any]:
        assert self._next is not None
        return {
            **self._attributes,
            "format": FORMAT,
            "attempt": self._attempt,
            "spec": json.dumps(asdict(self._spec)),
            "first_step": self._start[self._keep],
            "last_step": self._next[self._keep],
        }

    def _path(self, temporary: bool = False) -> Path:
        return self._directory / f"segment-{self._number:06d}.h5{'.tmp' if temporary else ''}"


def _series(leaf: Leaf, columns: int) -> _Series:
    """Chunks of about 1 MiB and a power of two of rows: all columns together where they are small, else one column.

    4096 rows of a reward, 128 of an Atari frame; fewer where one chunk of every column would not fit 32 MiB.
    """
    item = int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
    together = _CHUNK_BYTES // max(item * columns, 1) >= 128
    rows = min(_CHUNK_BYTES // max(item * columns, 1), 4096) if together else min(_CHUNK_BYTES // item, 128)
    rows = max(min(rows, max(16, _BUFFER_BYTES // max(item * columns, 1))), 1)
    rows = 1 << (rows.bit_length() - 1)
    chunk = (rows, columns if together else 1, *leaf.shape)
    return _Series(leaf, chunk, np.empty((rows, columns, *leaf.shape), leaf.dtype))


def _verify(path: Path, expected: Mapping[str, tuple[int, Array | None]]) -> None:
    """Read back the length and the last row of every series. Raises OSError."""
    with open_h5(path) as file:
        for name, (rows, end) in expected.items():
            data = file[name]
            if len(data) != rows or (end is not None and data[-1].tobytes() != end.tobytes()):
                raise OSError(f"{name} reads back differently from what was written")
