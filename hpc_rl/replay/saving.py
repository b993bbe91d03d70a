"""The files of a replay: every row of a ring is written once, by a thread of the rank that holds it.

A row never changes once the next one is there. So a snapshot is a copy of what is known of items, the names of the
files that hold older rows already, and of new ones for the rest; these are written while training goes on. A file holds
`PIECE_BYTES` of rows; the newest one, as long as it holds less, gives way to one with the rows that followed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.dealing import dealt, owners
from hpc_rl.replay.rows import Rows
from hpc_rl.types import Tree

PIECE_BYTES = 32 << 20  # of rows in a file, before compression
COPIES = 16  # pieces that are copied before their turn, at most: beyond, insertions wait for the disk


class Unwritten(RuntimeError):
    """No file of a replay was finished for too long; the message names it and the remedy."""


@dataclass(frozen=True)
class Piece:
    """Rows first..end of a ring, exclusive, in one file."""

    name: str
    first: int
    end: int


@dataclass
class Task:
    """A file that is to be written."""

    name: str
    rows: Rows | None = None
    first: int = 0
    end: int = 0
    state: StateDict | None = None  # what it will hold; of rows a copy once it is taken

    def copy(self) -> StateDict:
        """What the file holds, which nobody changes from now on."""
        if self.state is None and self.rows is not None:
            self.state = {"first": self.first, "rows": self.rows.copy(self.first, self.end)}
        return self.state or {}


class Saver:
    """Writes and reads the files of one rank's rings.

    Args:
        prefix: how the names of this attempt's files begin; no other attempt's do.
        write, read: a file of this name, whole or not at all; they raise sentences for the user.
        limit_s: the longest that one file may take.
    """

    def __init__(
        self,
        prefix: str,
        write: Callable[[str, StateDict], None],
        read: Callable[[str], StateDict],
        limit_s: float = 120.0,
    ) -> None:
        self.prefix, self.write, self.read, self.limit_s = prefix, write, read, limit_s
        self.writing = ""  # the name of the file at work
        self.pieces: dict[int, list[Piece]] = {}  # of the ring with this first column, together a range of its rows
        self.count = 0  # snapshots of rings
        self.tasks: deque[Task] = deque()
        self.changed = threading.Condition()  # of tasks, thread and error
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, rows: Rows, low: int, state: StateDict) -> StateDict:
        """Begin to write the rows that items from row ``low`` on need, and ``state``, which nobody changes any more.

        Returns the names of all files that hold the ring. Raises what an earlier write did.
        """
        self.check()
        column, self.count = int(rows.column[0]), self.count + 1
        pieces, new = self._pieces(column, rows, max(0, low - rows.stack + 1))
        self.pieces[column] = pieces
        name, names = self.name(column, self.count), [vars(piece) for piece in pieces]
        known = {**state, "column": rows.column.copy(), "end": rows.end, "head": rows.head(), "pieces": names}
        with self.changed:
            self.tasks += [Task(piece.name, rows, piece.first, piece.end) for piece in new]
            self.tasks.append(Task(name, state=known))
            if self.thread is None:
                self.thread = threading.Thread(target=self._write_all, name="replay files")
                self.thread.start()
        return {"column": rows.column.copy(), "file": name, "rows": names}

    def name(self, column: int, count: int) -> str:
        """The file of what is known of the ring with this first column at one snapshot; it names those of the rows."""
        return f"{self.prefix}-c{column}-s{count}.h5"

    def make_way(self, rows: Rows, moves: int) -> None:
        """Copy rows that a fragment of so many ``moves`` would overwrite before they are written.

        Raises what a write did, and Unwritten.
        """
        if not self.tasks and self.error is None:
            return
        row = rows.end + moves + rows.stack - rows.slots
        with self.changed:
            for task in self.tasks:
                if task.rows is rows and task.first <= row:
                    task.copy()
            self._wait(lambda: sum(task.state is not None for task in self.tasks) < COPIES + 1)
        self.check()

    def flush(self) -> None:
        """Wait until everything is written. Raises what a write did, and Unwritten."""
        with self.changed:
            self._wait(lambda: self.thread is None)
        self.check()

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait, holding `changed`, for as long as one file after the other is written."""
        while not done():
            left = len(self.tasks)
            if not self.changed.wait_for(lambda: done() or len(self.tasks) < left, self.limit_s):  # noqa: B023
                raise Unwritten(
                    f"waited {self.limit_s:.0f} s for {self.writing} of checkpoints/replay to be written; look whether "
                    "the disk is at work, then resume the run"
                )

    def check(self) -> None:
        """Raise what a write did."""
        if self.error is not None:
            raise self.error

    def load(self, rows: Rows, parts: Sequence[StateDict], kept: int) -> StateDict:
        """Bring the rows of these columns back, whatever rings had them. Returns what is known of their items.

        ``kept``: moves of each column that items may cover.

        Raises:
            ValueError: a column is missing, or its rows are of other leaves or another capacity.
        """
        held = owners(parts, rows.column.tolist())
        states = {id(part): self.read(part["file"]) for part, _ in held}
        state = dealt([(states[id(part)], k) for part, k in held], rows.column, rows.slots, kept)
        rows.clear(int(state["end"]))
        for part in {id(part): part for part, _ in held}.values():
            places = [(k, j) for j, (other, k) in enumerate(held) if other is part]
            end = int(states[id(part)]["end"])
            shift = rows.end - end
            pieces = _chain(part["rows"], max(end, 0))
            for piece in pieces:
                rows.put(piece.first + shift, piece.end + shift, self._rows_of(piece), places)
            rows.put(rows.end, rows.end + 1, states[id(part)]["head"], places)
            if np.array_equal(np.asarray(part["column"]), rows.column):
                self.pieces[int(rows.column[0])] = pieces
        return state

    def _rows_of(self, piece: Piece) -> Tree:
        state = self.read(piece.name)
        if int(state["first"]) != piece.first:
            raise ValueError(f"{piece.name} holds rows from {state['first']} on and not from {piece.first} on")
        return {name: np.asarray(x) for name, x in state["rows"].items()}

    def _pieces(self, column: int, rows: Rows, begin: int) -> tuple[list[Piece], list[Piece]]:
        """(all files that hold the rows begin..end, those of them that are new)."""
        whole = max(1, PIECE_BYTES // rows.row_bytes)
        old = [piece for piece in self.pieces.get(column, []) if piece.end > begin]
        if old and old[-1].end < rows.end and old[-1].end - old[-1].first < whole:
            old.pop()
        first = old[-1].end if old else begin
        ranges = [(low, min(low + whole, rows.end)) for low in range(first, rows.end, whole)]
        new = [Piece(f"{self.prefix}-c{column}-{low}-{high}.h5", low, high) for low, high in ranges]
        return [*old, *new], new

    def _write_all(self) -> None:
        """What the thread does: write until there is nothing left, or a write fails."""
        while True:
            with self.changed:
                if not self.tasks or self.error is not None:
                    self.tasks.clear()
                    self.thread = None
                    self.changed.notify_all()
                    return
                task = self.tasks[0]
                state = task.copy()
                self.tasks.popleft()
                self.writing = task.name
                self.changed.notify_all()
            try:
                self.write(task.name, state)
            except BaseException as error:  # raised again by the rank's own thread
                self.error = error


def _chain(rows: Sequence[StateDict], end: int) -> list[Piece]:
    """The files of a ring, one behind the other. Raises ValueError where they are not, or do not end at row ``end``."""
    pieces = [Piece(str(x["name"]), int(x["first"]), int(x["end"])) for x in rows]
    ends = [piece.end for piece in pieces]
    if ends[-1:] != ([end] if end else []) or [piece.first for piece in pieces[1:]] != ends[:-1]:
        raise ValueError(f"its files do not hold its rows up to {end} without a gap")
    return pieces
