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
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpc_rl.storage.datasets import Absent, reading
from hpc_rl.storage.h5 import FORMAT, Sink, compressed, create_h5, discard, finish, open_h5, remedy
from hpc_rl.storage.run_dir import RunDir, publish
from hpc_rl.storage.untrusted import Unreadable, checked, read_json
from hpc_rl.types import Array, Leaf, Schema, Spec, Tree

_CHUNK_BYTES = 1 << 20
_BUFFER_BYTES = 32 << 20
_FOLDER = re.compile(r"a([0-9]+)-(.+)-([0-9]+)")
_FILE = re.compile(r"segment-([0-9]+)\.h5")
_FROM = {"file": str | None, "steps": dict[str, int]}  # of a provenance file's "resumed_from"
_DRAWN = "noise"  # the leaf that every fragment draws anew
_PROVENANCE_BYTES = 16 << 20  # with a diff, and a step for each column


class RecordingFailed(RuntimeError):
    """A segment could not be written; closed segments are untouched."""


class BadSegment(ValueError):
    """A file is not a segment that this version can read."""


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
            numbers = [_number(path) for path in self._directory.iterdir() if _FILE.fullmatch(path.name)]
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


# --- reading ---


@dataclass(frozen=True)
class Segment:
    """What a segment holds; ``start`` and ``stop`` are env-step numbers before the first and after the last move."""

    path: Path
    attempt: int
    role: str
    index: int
    number: int
    columns: Array  # [b] int32
    start: Array  # [b] int64
    stop: Array  # [b] int64


Limits = Mapping[tuple[int, int], int]
"""(attempt, column) -> first env-step number that a later attempt made again; absent where nothing was abandoned."""


def segments(run: Path) -> list[Path]:
    """Closed segments of a run, by (attempt, role, index, number); files still being written are left out."""
    below = (run / "trajectories").glob("*/segment-*.h5")
    paths = [path for path in below if _FOLDER.fullmatch(path.parent.name) and _FILE.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (*_origin(path), _number(path)))


def describe(path: Path) -> Segment:
    """Attempt, role, columns and steps of one segment. Raises BadSegment where it cannot be read."""
    try:
        attempt, role, index = _origin(path)
        with reading(path) as source:
            if (version := source.number("format")) != FORMAT:
                raise BadSegment(
                    f"{path} has format {version}, this version reads {FORMAT}; use the version that wrote it"
                )
            columns = source.read("column")
            start, stop = (source.vector(name, columns.size) for name in ("first_step", "last_step"))
        if columns.ndim != 1 or columns.dtype.kind != "i" or (start < 0).any() or (stop < start).any():
            raise Unreadable("its columns and steps do not fit together")
    except (FileNotFoundError, Unreadable, Absent) as error:
        raise BadSegment(f"{path} is not a readable segment ({error}); move it away to go on without it") from error
    return Segment(path, attempt, role, index, _number(path), columns, start, stop)


def kept_from(run: Path) -> Limits:
    """Where each attempt's rows end to count, because a later attempt went back and made these steps again.

    The later attempt's provenance has its start ("resumed_from": {"file", "steps": {column: step}}, file null
    for the very beginning); where it does not, the first step it recorded of the column does.
    """
    segments_of_run = [describe(path) for path in segments(run)]
    columns = {int(column) for segment in segments_of_run for column in segment.columns}
    recorded = {segment.attempt for segment in segments_of_run}
    attempts = sorted(recorded | set(RunDir(run).attempts()), reverse=True)
    limits: dict[tuple[int, int], int] = {}
    earliest: dict[int, int] = {}  # column -> where any later attempt began
    for attempt in attempts:
        limits |= {(attempt, column): step for column, step in earliest.items()}
        for column, step in _starts(run, attempt, segments_of_run, columns).items():
            earliest[column] = min(step, earliest.get(column, step))
    return limits


def kept_moves(path: Path, limits: Limits) -> Array:
    """bool [N, b]: moves that happened (not LAST -> FIRST) and were not abandoned by a later attempt."""
    segment = describe(path)
    valid, step = _moves(segment)
    most = np.iinfo(np.int64).max
    limit = [limits.get((segment.attempt, int(column)), most) for column in segment.columns]
    moves: Array = valid & (step < np.array(limit, np.int64))
    return moves


def episodes(path: Path, limits: Limits | None = None) -> Tree:
    """The episodes that ended in a segment, by row: column, step (env-step number of the last move), return, length,
    success (NaN where unknown, as in segments that were recorded without it).

    With ``limits`` from ``kept_from`` abandoned ones are left out. Raises BadSegment.
    """
    segment = describe(path)
    valid, moves = _moves(segment)
    score, length = _series_of(segment, "episode_return", "f"), _series_of(segment, "episode_length", "i")
    success = _success_of(segment, score)
    if not score.shape == length.shape == success.shape == valid.shape:
        raise _unfit(segment, "its returns, lengths and successes are not one for each move")
    ends = np.isfinite(score) & (kept_moves(path, limits) if limits is not None else True)
    row, column = np.nonzero(ends)
    return {
        "column": segment.columns[column],
        "step": moves[row, column],
        "return": score[row, column],
        "length": length[row, column],
        "success": success[row, column],
    }


def read(path: Path, name: str, rows: slice = slice(None)) -> Array:
    """Rows of one leaf of a segment; of a "fragment" leaf columns, of "noise" and "fragment_row" fragments.

    Raises:
        KeyError: the segment has no such leaf. BadSegment: it cannot be read.
    """
    try:
        with reading(path) as source:
            return source.read(name, rows)
    except (FileNotFoundError, Unreadable) as error:
        raise BadSegment(f"{path}: {name} cannot be read ({error}); move it away to go on without it") from error


def _moves(segment: Segment) -> tuple[Array, Array]:
    """(valid, env-step number) of every move, both [N, b]. Raises BadSegment."""
    valid = ~_series_of(segment, "first", "b")[1:]
    if (segment.start + valid.sum(0) != segment.stop).any():
        raise _unfit(segment, "its moves do not lead from its first to its last step")
    return valid, segment.start + np.cumsum(valid, 0) - valid


def _success_of(segment: Segment, like: Array) -> Array:
    """Successes [N, b]; NaN, of the shape of ``like``, where the segment has no such leaf. Raises BadSegment."""
    try:
        read(segment.path, "episode_success", slice(0))
    except KeyError:
        return np.full_like(like, np.nan)
    return _series_of(segment, "episode_success", "f")


def _series_of(segment: Segment, name: str, kind: str) -> Array:
    """A leaf [rows, b] whose dtype is of this kind. Raises BadSegment."""
    try:
        data = read(segment.path, name)
    except KeyError:
        raise _unfit(segment, f"there is no {name} in it") from None
    if data.ndim != 2 or data.shape[1] != len(segment.columns) or data.dtype.kind != kind:
        raise _unfit(segment, f"{name} is {data.dtype} {list(data.shape)}")
    return data


def _unfit(segment: Segment, fault: str) -> BadSegment:
    return BadSegment(f"{segment.path} is not a readable segment ({fault}); move it away to go on without it")


def _starts(run: Path, attempt: int, segments_of_run: list[Segment], columns: set[int]) -> dict[int, int]:
    """Column -> env-step number at which this attempt began."""
    starts: dict[int, int] = {}
    for segment in segments_of_run:
        if segment.attempt == attempt:
            for column, step in zip(segment.columns.tolist(), segment.start.tolist(), strict=True):
                starts[column] = min(step, starts.get(column, step))
    try:
        path = run / "provenance" / f"{attempt:04d}.json"
        resumed = checked(read_json(path, {}, most=_PROVENANCE_BYTES).get("resumed_from"), _FROM, _FROM, str(path))
        recorded = {int(column): step for column, step in resumed["steps"].items()}
        beginning = dict.fromkeys(columns, 0) if resumed["file"] is None else {}
    except (FileNotFoundError, ValueError):  # Unreadable, and columns that are no numbers
        return starts
    return starts | beginning | recorded


def _origin(path: Path) -> tuple[int, str, int]:
    match = _FOLDER.fullmatch(path.parent.name)
    if match is None or not _FILE.fullmatch(path.name):
        raise BadSegment(f"{path} is not in a folder named a<attempt>-<role>-<index>; segments are found by it")
    return int(match[1]), match[2], int(match[3])


def _number(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])
