"""A ring's files: each row is written once, what is saved is a moment, however training and writing overlap.

Mutations seen to fail: a file that is not full left as it is; all rows written every time; files of rows that are gone
named; rows overwritten before they are written; the oldest items' stacks of frames left out; lengths or priorities not
copied; the files of the attempt before forgotten; the error of a write swallowed; waits without
a limit.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hpc_rl.experience import Experience, Items
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay import saving
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.saving import Saver, Unwritten
from hpc_rl.storage.packing import from_bytes
from tests.replay.columns import Column, Folder, columns_of, fragment, saved, schema_of, spec_of
from tests.replay.test_dealing import items_of

WIDTH, UNROLL, KEPT, SPEC = 2, 4, 60, spec_of(4)
KINDS = (Items("items", 96, 3, alpha=0.6), Items("games", 96, 3, complete="episode"), Items("options", 96, 2))


@pytest.fixture(autouse=True)
def ten_rows_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PIECE_BYTES", 10 * ring_of(None).rows.row_bytes)


def ring_of(saver: Saver | None) -> Ring:
    def annotate(rows: Any) -> dict[str, Any]:
        return {"outcome": (rows["reward"] * ~rows["first"][1:]).sum(0).astype(np.float32)}

    experience = Experience(UNROLL, KINDS, capacity=KEPT * WIDTH)
    return Ring(schema_of(SPEC), SPEC, range(10, 10 + WIDTH), experience, 1, 7, annotate, saver)


def insert(ring: Ring, columns: list[Column], fragments: int) -> None:
    for _ in range(fragments):
        ring.insert(fragment(columns, UNROLL))
        ring.release()


def loaded(folder: Folder, part: StateDict, attempt: int = 1) -> Ring:
    ring = ring_of(folder.saver(attempt))
    ring.load([part])
    return ring


def rows_in(folder: Folder, names: set[str]) -> int:
    states = [from_bytes(folder[name]) for name in names]
    return sum(len(state["rows"]["reward"]) for state in states if "rows" in state)


def test_every_row_is_written_once_and_those_of_a_file_that_was_not_full_once_more() -> None:
    columns, folder = columns_of(SPEC, WIDTH), Folder()
    ring = ring_of(folder.saver())
    before, partial, whole = set[str](), 0, ring.rows.row_bytes
    assert whole * 10 == saving.PIECE_BYTES
    for number in range(12):
        low = ring.rows.end
        insert(ring, columns, 3)
        (part,) = saved([ring])
        new = ring.rows.end - max(low, 0)
        assert rows_in(folder, set(folder) - before) == new + partial, number
        pieces = part["rows"]
        assert all(piece["end"] - piece["first"] == 10 for piece in pieces[1:-1])
        last = pieces[-1]["end"] - pieces[-1]["first"]
        before, partial = set(folder), last if last < 10 else 0
        assert len(pieces) <= (KEPT + UNROLL) // 10 + 2, "files of rows that are gone are named"
        assert items_of(loaded(folder, part)) == items_of(ring)


def test_a_resumed_ring_goes_on_with_the_files_of_the_attempts_before() -> None:
    columns, folder = columns_of(SPEC, WIDTH), Folder()
    ring = ring_of(folder.saver())
    insert(ring, columns, 7)
    (part,) = saved([ring])
    for attempt in (1, 2):
        ring, names = loaded(folder, part, attempt), set(folder)
        insert(ring, columns, 2)
        (part,) = saved([ring])
        assert rows_in(folder, set(folder) - names) < 20 < ring.rows.end
        assert {piece["name"][:2] for piece in part["rows"]} >= {"a0", f"a{attempt}"}
    assert items_of(loaded(folder, part, 3)) == items_of(ring)


class Slow(Folder):
    """Files that are written once ``open`` is set."""

    def __init__(self) -> None:
        self.open, self.begun = threading.Event(), threading.Event()

    def write(self, name: str, state: StateDict) -> None:
        self.begun.set()
        assert self.open.wait(20)
        super().write(name, state)


@pytest.mark.parametrize("fragments", [1, 2, 5, 40])
def test_a_snapshot_is_a_moment_whatever_is_inserted_before_it_is_written(fragments: int) -> None:
    columns, folder = columns_of(SPEC, WIDTH), Slow()
    ring = ring_of(folder.saver())
    insert(ring, columns, 31)
    part, items = ring.state(), items_of(ring)
    assert folder.begun.wait(20)
    mass = ring.kinds[0].priorities.tree.leaves.copy()  # type: ignore[union-attr]
    insert(ring, columns, fragments)
    keys = np.arange(ring.low, ring.rows.end) * WIDTH
    ring.reprioritize(keys, np.full(len(keys), 9.0))
    folder.open.set()
    assert ring.saver is not None
    ring.saver.flush()
    later = loaded(folder, part)
    assert items_of(later) == items and items_of(ring) != items
    assert np.array_equal(later.kinds[0].priorities.tree.leaves, mass)  # type: ignore[union-attr]


class Full(Folder):
    """Files of a disk that is full once there are three."""

    def write(self, name: str, state: StateDict) -> None:
        if len(self) == 3:
            raise OSError(28, "No space left on device")
        super().write(name, state)


def test_what_a_write_raises_is_raised_by_the_next_insertion_snapshot_and_wait() -> None:
    columns, folder = columns_of(SPEC, WIDTH), Full()
    ring = ring_of(folder.saver())
    insert(ring, columns, 12)
    ring.state()
    assert ring.saver is not None
    for action in (ring.saver.flush, lambda: insert(ring, columns, 1), ring.state):
        with pytest.raises(OSError, match="No space left"):
            action()
    assert len(folder) == 3


def test_a_disk_that_hangs_ends_every_wait_for_it() -> None:
    columns, hang = columns_of(SPEC, WIDTH), threading.Event()
    ring = ring_of(Saver("a0", lambda name, state: hang.wait(3) and None, lambda name: {}, limit_s=0.2))
    insert(ring, columns, 12)
    ring.state()
    assert ring.saver is not None
    with pytest.raises(Unwritten, match=r"waited 0 s for a0-c10-\d+-\d+.h5 of checkpoints/replay .* is at work"):
        ring.saver.flush()
    hang.set()
    ring.saver.flush()


def test_without_a_saver_nothing_is_kept() -> None:
    ring = ring_of(None)
    insert(ring, columns_of(SPEC, WIDTH), 5)
    assert ring.state() == {}
    ring.load([{"column": np.arange(10, 12)}])
    assert ring.rows.end > 0 and ring.updates == 0
