"""Recorded moves as an analysis reads them: each leaf has one row for every move, whatever else the file keeps of it.

Every function opens its file once, reads, and closes it: HDF5 handles do not travel between processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_rl.storage.datasets import Absent, Source, reading
from hpc_rl.storage.segments import BadSegment, Limits, Segment, bad_segment, describe
from hpc_rl.storage.untrusted import Unreadable
from hpc_rl.types import Array, Tree

KNOTS = 64  # of one column in one segment, where its pace is remembered
_FRAGMENT = ("column", "start", "attempt", "noise", "fragment_row")  # one row for each fragment or column


@dataclass(frozen=True)
class Series:
    """A leaf as it is recorded: ``shape`` and ``dtype`` of one value, and the rows of one HDF5 chunk."""

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    unit: str
    doc: str


def described(paths: Sequence[Path]) -> list[Segment | str]:
    """What each segment holds, or the sentence that says why it cannot be read."""
    results: list[Segment | str] = []
    for path in paths:
        try:
            results.append(describe(path))
        except BadSegment as error:
            results.append(str(error))
    return results


def series(segment: Segment) -> dict[str, Series]:
    """The leaves that have a row for each move, by name. Raises BadSegment."""
    with _opened(segment.path) as source:
        leaves = {}
        for name in source.names():
            shape, dtype, chunk = source.layout(name)
            if name in _FRAGMENT or len(shape) < 2 or shape[0] < segment.moves or shape[1] != len(segment.columns):
                continue
            leaves[name] = Series(shape[2:], dtype, chunk[0], source.text("unit", name), source.text("doc", name))
    return leaves


def moves(segment: Segment, name: str, begin: int = 0, end: int | None = None) -> Array:
    """Rows ``begin`` to ``end`` of a leaf, [rows, b, *shape]: row t is of move t.

    Of an observation that is the one before the move; where stacks are recorded as single frames, its newest frame.

    Raises:
        BadSegment: the leaf is not there or cannot be read.
    """
    with _opened(segment.path) as source:
        return _rows(source, segment, name, begin, end)


def block(segment: Segment, names: Sequence[str], limits: Limits, begin: int, end: int) -> Tree:
    """Rows ``begin`` to ``end`` of some leaves as `moves` gives them, "kept" and "step" as `kept` does, and "valid"
    [rows, b], moves that happened; in one opening. Raises BadSegment."""
    with _opened(segment.path) as source:
        leaves = {name: _rows(source, segment, name, begin, end) for name in names}
        first = _of_kind(source, segment, "first", "b")
    counts, step = _kept(segment, first, limits)
    return leaves | {"valid": ~first[1:][begin:end], "kept": counts[begin:end], "step": step[begin:end]}


def paces(segment: Segment, limits: Limits) -> Tree:
    """The pace of `ends` alone. Raises BadSegment."""
    with _opened(segment.path) as source:
        first, version = (_of_kind(source, segment, name, kind) for name, kind in (("first", "b"), ("version", "i")))
    if version.shape != first[1:].shape:
        raise _unfit(segment, "its leaves do not have one row for each move")
    return _pace(segment, *_kept(segment, first, limits), version)


def kept(segment: Segment, limits: Limits) -> tuple[Array, Array]:
    """Both [N, b]: bool, moves that happened (not LAST → FIRST) and were not made again by a later attempt; and every
    move's env-step number in its column. Raises BadSegment."""
    with _opened(segment.path) as source:
        first = _of_kind(source, segment, "first", "b")
    return _kept(segment, first, limits)


def outline(segment: Segment, limits: Limits) -> tuple[Array, Array, Array, Array, Array]:
    """What says where episodes begin and end: first [N + 1, b], kept and env-step number as `kept` gives them,
    terminated (discount 0) and over (the move ended a game), all [N, b]. Raises BadSegment."""
    with _opened(segment.path) as source:
        first = _of_kind(source, segment, "first", "b")
        discount, length = (_of_kind(source, segment, x, k) for x, k in (("discount", "f"), ("episode_length", "i")))
    if not discount.shape == length.shape == first[1:].shape:
        raise _unfit(segment, "its leaves do not have one row for each move")
    return first, *_kept(segment, first, limits), discount == 0, length > 0


def ends(segment: Segment, limits: Limits) -> Tree:
    """The kept episodes that ended in a segment, by row, and at which pace its columns moved. Raises BadSegment.

    Episodes [n]: column, end (the column's env steps when it was over), return, length, success (NaN where unknown),
    version (of its last move). Pace [k]: pace_column, pace_version, pace_step: from this env step of the column on it
    acted by this version; at most `KNOTS` of a column, and one more for where it ends.
    """
    with _opened(segment.path) as source:
        first = _of_kind(source, segment, "first", "b")
        score, length = (_of_kind(source, segment, f"episode_{x}", k) for x, k in (("return", "f"), ("length", "i")))
        version = _of_kind(source, segment, "version", "i")
        known = "episode_success" in source.names()
        success = _of_kind(source, segment, "episode_success", "f") if known else np.full_like(score, np.nan)
    if not score.shape == length.shape == version.shape == success.shape == first[1:].shape:
        raise _unfit(segment, "its leaves do not have one row for each move")
    counts, step = _kept(segment, first, limits)
    row, column = np.nonzero(np.isfinite(score) & counts)
    episodes = {
        "column": segment.columns[column],
        "end": step[row, column] + 1,
        "return": score[row, column],
        "length": length[row, column].astype(np.int64),
        "success": success[row, column],
        "version": version[row, column],
    }
    return episodes | _pace(segment, counts, step, version)


def _pace(segment: Segment, counts: Array, step: Array, version: Array) -> Tree:
    columns, versions, steps = [], [], []
    for k, number in enumerate(segment.columns.tolist()):
        own = counts[:, k]
        acted, at = version[own, k], step[own, k]
        if not len(at):
            continue
        begins = np.flatnonzero(np.diff(acted, prepend=acted[0] - 1))
        begins = begins[np.linspace(0, len(begins) - 1, min(KNOTS, len(begins))).astype(int)]
        versions += [acted[begins], acted[-1:] + 1]
        steps += [at[begins], at[-1:] + 1]
        columns.append(np.full(len(begins) + 1, number, np.int64))
    parts = (columns, versions, steps)
    names = ("pace_column", "pace_version", "pace_step")
    return {name: np.concatenate([np.empty(0, np.int64), *part]) for name, part in zip(names, parts, strict=True)}


def _kept(segment: Segment, first: Array, limits: Limits) -> tuple[Array, Array]:
    """(kept, env-step number) of every move, both [N, b]. Raises BadSegment."""
    valid = ~first[1:]
    if (segment.start + valid.sum(0) != segment.stop).any():
        raise _unfit(segment, "its moves do not lead from its first to its last step")
    step = segment.start + np.cumsum(valid, 0) - valid
    most = np.iinfo(np.int64).max
    limit = [limits.get((segment.attempt, column), most) for column in segment.columns.tolist()]
    return valid & (step < np.array(limit, np.int64)), step


def _rows(source: Source, segment: Segment, name: str, begin: int, end: int | None) -> Array:
    begin, end, _ = slice(begin, end).indices(segment.moves)
    try:
        before = max(source.shape(name)[0] - segment.moves - 1, 0)  # older frames of the first stack
        return source.read(name, slice(begin + before, end + before))
    except Absent as error:
        raise _unfit(segment, str(error)) from None


def _of_kind(source: Source, segment: Segment, name: str, kind: str) -> Array:
    try:
        data = source.read(name)
    except Absent as error:
        raise _unfit(segment, str(error)) from None
    if data.ndim != 2 or data.shape[1] != len(segment.columns) or data.dtype.kind != kind:
        raise _unfit(segment, f"{name} is {data.dtype} {list(data.shape)}")
    return data


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    try:
        with reading(path) as source:
            yield source
    except (FileNotFoundError, Unreadable) as error:
        raise bad_segment(path, f"cannot be read ({error})") from error


def _unfit(segment: Segment, fault: str) -> BadSegment:
    return bad_segment(segment.path, f"is not a readable segment ({fault})")
