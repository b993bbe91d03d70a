"""Closed segments of a run: which there are, what each holds, and which of its moves a later attempt made again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_rl.storage.datasets import Absent, reading
from hpc_rl.storage.h5 import FORMAT
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.untrusted import Unreadable, checked, read_json
from hpc_rl.types import Array

_FOLDER = re.compile(r"a([0-9]+)-(.+)-([0-9]+)")
FILE = re.compile(r"segment-([0-9]+)\.h5")
_FROM = {"file": str | None, "steps": dict[str, int]}  # of a provenance file's "resumed_from"
_PROVENANCE_BYTES = 16 << 20  # with a diff, and a step for each column


class BadSegment(ValueError):
    """A file is not a segment that this version can read. ``path`` is that file, where the sentence is about one."""

    path: Path | None = None


def bad_segment(path: Path, sentence: str) -> BadSegment:
    """The error of this file. (Its path is set afterwards, for errors come from other processes with one argument.)"""
    error = BadSegment(f"{path} {sentence}; move it away to go on without it")
    error.path = path
    return error


@dataclass(frozen=True)
class Segment:
    """What a segment holds; ``start`` and ``stop`` are env-step numbers before the first and after the last move.

    ``moves`` is its N, rows of every column, void ones LAST → FIRST among them.
    """

    path: Path
    attempt: int
    role: str
    index: int
    number: int
    columns: Array  # [b] int32
    start: Array  # [b] int64
    stop: Array  # [b] int64
    moves: int


Limits = Mapping[tuple[int, int], int]
"""(attempt, column) -> first env-step number that a later attempt made again; absent where nothing was abandoned."""


def segments(run: Path) -> list[Path]:
    """Closed segments of a run, by (attempt, role, index, number); files still being written are left out."""
    below = (run / "trajectories").glob("*/segment-*.h5")
    paths = [path for path in below if _FOLDER.fullmatch(path.parent.name) and FILE.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (*_origin(path), number(path)))


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
            moves = source.shape("first")[0] - 1 if source.shape("first") else -1
        if moves < 0 or columns.ndim != 1 or columns.dtype.kind != "i" or (start < 0).any() or (stop < start).any():
            raise Unreadable("its columns and steps do not fit together")
    except (FileNotFoundError, Unreadable, Absent) as error:
        raise bad_segment(path, f"is not a readable segment ({error})") from error
    return Segment(path, attempt, role, index, number(path), columns, start, stop, moves)


def kept_from(run: Path, described: Sequence[Segment] | None = None) -> Limits:
    """Where each attempt's rows end to count, because a later attempt went back and made these steps again.

    ``described`` are the run's segments where they are known already, else all are read.

    The later attempt's provenance has its start ("resumed_from": {"file", "steps": {column: step}}, file null
    for the very beginning); where it does not, the first step it recorded of the column does.
    """
    segments_of_run = [describe(path) for path in segments(run)] if described is None else described
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


def read(path: Path, name: str, rows: slice = slice(None), place: int | None = None) -> Array:
    """Rows of one leaf of a segment; of a "fragment" leaf columns, of "noise" and "fragment_row" fragments.

    With ``place`` only those of one column, by its position on the column axis.

    Raises:
        KeyError: the segment has no such leaf. BadSegment: it cannot be read.
    """
    try:
        with reading(path) as source:
            return source.read(name, rows, place)
    except (FileNotFoundError, Unreadable) as error:
        raise bad_segment(path, f"cannot be read ({name}: {error})") from error


def _starts(run: Path, attempt: int, segments_of_run: Sequence[Segment], columns: set[int]) -> dict[int, int]:
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
    if match is None or not FILE.fullmatch(path.name):
        raise BadSegment(f"{path} is not in a folder named a<attempt>-<role>-<index>; segments are found by it")
    return int(match[1]), match[2], int(match[3])


def number(path: Path) -> int:
    """Of a segment among those of its folder, from its name."""
    return int(path.name.split("-")[1].split(".")[0])
