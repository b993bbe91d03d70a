"""Node-shared weights: no reader ever takes a torn copy, whatever the writer is doing.

Mutations seen to fail: copies accepted unchecked; without the checksum; without the sequence number; the version that
one has taken again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.transport.weights import SharedWeights, shared_path
from hpc_rl.types import Clock

NBYTES, HEAD = 1 << 20, 64  # of the payload; before it
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from hpc_rl.transport.weights import SharedWeights
from hpc_rl.types import Clock
weights = SharedWeights(Path(sys.argv[1]), int(sys.argv[2]), create=False)
version, end = 0, time.monotonic() + 20
while time.monotonic() < end:
    version += int(sys.argv[3])
    weights.write(np.full(int(sys.argv[2]), version % 251, np.uint8), Clock(version, 10 * version))
"""


@pytest.fixture
def path() -> Iterator[Path]:
    path = shared_path(f"test-{os.getpid()}-{time.time_ns():x}", 0)
    yield path
    path.unlink(missing_ok=True)


def at(version: int) -> Clock:
    """A clock whose env steps tell its version."""
    return Clock(version, 10 * version)


def of(version: int) -> np.ndarray:
    return np.full(NBYTES, version % 251, np.uint8)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_accepted_copy_is_whole(path: Path, stride: int) -> None:
    """A writer in another process never pauses; with stride 2 it always hits one slot."""
    weights = SharedWeights(path, NBYTES, create=True)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(NBYTES), str(stride)])
    data, have, accepted, end = of(0), -1, 0, time.monotonic() + 4
    try:
        while accepted < 200 and time.monotonic() < end:
            before = have
            have = weights.read(data, at(have)).version
            assert have >= before
            if have > before:
                accepted += 1
                assert (data == have % 251).all(), f"version {have} is torn"
    finally:
        writer.kill()
        writer.wait()
    assert accepted >= 5, f"only {accepted} copies were accepted, {weights.torn} refused"
    weights.close(remove=True)


def test_a_reader_takes_only_what_is_newer(path: Path) -> None:
    writer, reader = SharedWeights(path, NBYTES, create=True), SharedWeights(path, NBYTES, create=False)
    data = of(200)
    assert reader.read(data, at(-1)) == at(-1) and (data == 200).all(), "nothing was written yet"
    for version in (0, 1, 4, 6, 7):
        writer.write(of(version), at(version))
        assert reader.read(data, at(version)) == at(version) and (data != of(version)).any()
        assert reader.read(data, at(version - 1)) == at(version) and (data == of(version)).all()
    assert reader.read(data, at(99)) == at(99)


@pytest.mark.parametrize("word", [0, 1, 2, 3])
def test_a_writer_that_died_half_way_leaves_the_old_weights(path: Path, word: int) -> None:
    writer, reader = SharedWeights(path, NBYTES, create=True), SharedWeights(path, NBYTES, create=False)
    writer.write(of(3), at(3))
    data = of(9)
    head = writer.slots[0][:HEAD].view(np.int64)
    head[word] += 1
    version = reader.read(data, at(2)).version
    if word == 1:  # a version is no sum of the payload: only the writer's order protects it
        assert version in (2, 4)
        return
    assert version == 2 and (data == 9).all() and reader.torn == 3


def test_a_changed_payload_is_noticed(path: Path) -> None:
    writer, reader = SharedWeights(path, NBYTES, create=True), SharedWeights(path, NBYTES, create=False)
    writer.write(of(3), at(3))
    writer.slots[0][HEAD + NBYTES // 2] ^= 1
    data = of(9)
    assert reader.read(data, at(2)) == at(2) and (data == 9).all()


def test_the_creator_removes_the_file(path: Path) -> None:
    writer, reader = SharedWeights(path, 100, create=True), SharedWeights(path, 100, create=False)
    reader.close(remove=False)
    assert path.exists() and path.stat().st_mode & 0o777 == 0o600
    writer.close(remove=True)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        SharedWeights(path, 100, create=False)
