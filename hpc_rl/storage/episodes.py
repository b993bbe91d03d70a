"""Episodes of a run, joined over the segments in which their moves lie, and the rows of their leaves.

An episode is what the policy played: from a row whose ``first`` is true to the move before the next such row. What a
later attempt made again is left out. Here is where episodes lie, one after the other as they end; `Leaves` reads them,
so that memory holds one episode and a few blocks of rows, however long the run is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hpc_rl.storage.datasets import reading
from hpc_rl.storage.recorded import described, outline
from hpc_rl.storage.segments import BadSegment, Limits, Segment, kept_from, read, segments
from hpc_rl.storage.untrusted import Unreadable
from hpc_rl.types import Array

End = Literal["terminated", "truncated", "cut"]
"""Its last move's discount is 0; it ended otherwise, as at a time limit; or what follows is missing."""

_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Moves ``begin`` to ``end`` − 1 of one column of one segment."""

    path: Path
    attempt: int
    place: int  # of the column on the segment's column axis
    begin: int
    end: int
    moves: int  # N, of the whole segment


@dataclass(frozen=True, slots=True)
class Episode:
    """Where an episode lies. ``begun``: its first observation opens it; where false, what came before is missing."""

    column: int
    start: int  # the column's env-step number at its first move
    pieces: tuple[Piece, ...]
    begun: bool
    end: End

    @property
    def length(self) -> int:
        """Moves that are there."""
        return sum(piece.end - piece.begin for piece in self.pieces)

    @property
    def whole(self) -> bool:
        return self.begun and self.end != "cut"

    def part(self, begin: int, end: int) -> Episode:
        """Its moves ``begin`` to ``end`` − 1, as `Leaves` reads them."""
        pieces, passed = [], 0
        for piece in self.pieces:
            low, high = max(begin - passed, 0), min(end - passed, piece.end - piece.begin)
            if low < high:
                pieces.append(replace(piece, begin=piece.begin + low, end=piece.begin + high))
            passed += piece.end - piece.begin
        last: End = self.end if end == self.length else "cut"
        return Episode(self.column, self.start + begin, tuple(pieces), self.begun and not begin, last)


@dataclass(frozen=True)
class Survey:
    """What of a run's trajectories can be read: closed segments in order, and a sentence about each that cannot."""

    segments: list[Segment]
    limits: Limits
    faults: list[str]


def survey(run: Path) -> Survey:
    """Look at every closed segment of a run, without its rows."""
    results = described(segments(run))
    readable = [x for x in results if isinstance(x, Segment)]
    faults = [x for x in results if isinstance(x, str)]
    return Survey(readable, kept_from(run, readable), faults)


@dataclass
class _Open:
    """An episode whose end has not come yet."""

    column: int
    start: int
    begun: bool
    next: int = 0  # env-step number that its next move has
    over: bool = False  # its last move ended a game
    terminated: bool = False
    pieces: list[Piece] = field(default_factory=list)

    def add(self, piece: Piece, over: bool, terminated: bool) -> None:
        self.pieces.append(piece)
        self.next += piece.end - piece.begin
        self.over, self.terminated = over, terminated

    def closed(self, cut: bool) -> Episode:
        end: End = "terminated" if self.terminated else "cut" if cut else "truncated"
        return Episode(self.column, self.start, tuple(self.pieces), self.begun, end)


def joined(view: Survey) -> Iterator[Episode]:
    """Every episode that has a move that counts, by segment and row of its end; those cut off by the run's end last.

    A segment whose rows cannot be read is passed over as a gap is, and named in ``view.faults``.
    """
    open_episodes: dict[int, _Open] = {}
    for segment in view.segments:
        try:
            ended = _ended(segment, view.limits, open_episodes)
        except BadSegment as error:
            view.faults.append(str(error))
            continue
        yield from (episode for _, episode in sorted(ended, key=lambda item: item[0]))
    yield from (episode.closed(cut=True) for episode in open_episodes.values())


def _ended(segment: Segment, limits: Limits, open_episodes: dict[int, _Open]) -> list[tuple[int, Episode]]:
    """(row of its end, episode) of all that end in a segment. Raises BadSegment before anything has changed."""
    first, _, step, terminated, over = outline(segment, limits)
    void = first[1:]
    ended: list[tuple[int, Episode]] = []
    for place, column in enumerate(segment.columns.tolist()):
        limit = limits.get((segment.attempt, column))
        rows = segment.moves if limit is None else int(np.searchsorted(step[:, place], limit))
        if rows == 0:
            continue  # all of it was made again
        current = open_episodes.pop(column, None)
        if current is not None and (current.next != segment.start[place] or first[0, place]):
            ended.append((0, current.closed(cut=not current.over)))
            current = None
        begin = 0
        for cut in [*np.flatnonzero(void[:rows, place]).tolist(), rows]:
            if cut > begin:
                if current is None:
                    at = int(step[begin, place])
                    current = _Open(column, at, bool(first[begin, place]), at)
                piece = Piece(segment.path, segment.attempt, place, begin, cut, segment.moves)
                current.add(piece, bool(over[cut - 1, place]), bool(terminated[cut - 1, place]))
            if current is not None and (cut < rows or current.over):
                ended.append((cut, current.closed(cut=False)))
                current = None
            begin = cut + 1
        if current is not None:
            open_episodes[column] = current
    return ended


class Leaves:
    """Reads leaves of episodes; rows that share a block with other columns are kept until others need the room."""

    def __init__(self, cache_bytes: int = _CACHE_BYTES) -> None:
        self._room = cache_bytes
        self._blocks: OrderedDict[tuple[Path, str, int], Array] = OrderedDict()
        self._extents: OrderedDict[tuple[Path, str], tuple[int, int, bool]] = OrderedDict()

    def read(self, episode: Episode, name: str) -> Array:
        """A leaf of T moves: [T, …] of a step leaf, [T + 1, …] of edges and of single frames.

        Raises:
            KeyError: there is no such leaf. BadSegment: it cannot be read.
        """
        parts = []
        for number, piece in enumerate(episode.pieces):
            length, _, _ = self._extent(piece.path, name)
            overlap = length - piece.moves  # 0 of steps, 1 of edges, the stack of frames
            if overlap < 0:
                raise BadSegment(f"{piece.path}: {name} has {length} rows for {piece.moves} moves; move it away")
            shift, last = max(overlap - 1, 0), number == len(episode.pieces) - 1
            end = piece.end + shift + int(last and overlap > 0)
            parts.append(self._rows(piece, name, piece.begin + shift, end))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, piece: Piece, name: str, begin: int, end: int) -> Array:
        _, rows, shared = self._extent(piece.path, name)
        if not shared:
            return read(piece.path, name, slice(begin, end), piece.place)
        numbers = range(begin // rows, (end - 1) // rows + 1)
        blocks = [self._block(piece.path, name, number, rows) for number in numbers]
        parts = [
            block[max(begin - number * rows, 0) : end - number * rows, piece.place]
            for number, block in zip(numbers, blocks, strict=True)
        ]
        return np.concatenate(parts)  # a copy: nothing refers to the block

    def _block(self, path: Path, name: str, number: int, rows: int) -> Array:
        key = (path, name, number)
        if key not in self._blocks:
            self._blocks[key] = read(path, name, slice(number * rows, (number + 1) * rows))
            self._room -= self._blocks[key].nbytes
            while self._room < 0 and len(self._blocks) > 1:
                self._room += self._blocks.popitem(last=False)[1].nbytes
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _extent(self, path: Path, name: str) -> tuple[int, int, bool]:
        key = (path, name)
        if key not in self._extents:
            self._extents[key] = _extent(path, name)
            while len(self._extents) > 4096:
                self._extents.popitem(last=False)
        return self._extents[key]


def _extent(path: Path, name: str) -> tuple[int, int, bool]:
    """(rows of a leaf, rows of its chunks, whether a chunk holds all columns). Raises KeyError, BadSegment."""
    try:
        with reading(path) as source:
            shape, _, chunk = source.layout(name)
    except (FileNotFoundError, Unreadable) as error:
        raise BadSegment(f"{path}: {name} cannot be read ({error}); move it away to go on without it") from error
    if len(shape) < 2:
        raise BadSegment(f"{path}: {name} has no rows of columns; move it away to go on without it")
    return shape[0], chunk[0], chunk[1] >= shape[1]
