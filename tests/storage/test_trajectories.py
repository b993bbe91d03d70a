"""Segments hold exactly what was written, whatever kills the writer, and readers know what was abandoned."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpc_rl.fragments import stacked, trajectory_schema
from hpc_rl.storage import h5, recorded, segments, trajectories
from hpc_rl.storage.segments import BadSegment
from hpc_rl.storage.trajectories import Recorder, RecordingFailed
from hpc_rl.types import Actions, Array, Leaf, Spec, Tree

EXTRAS = {"log_prob": Leaf((), "float32")}
CARRY = {"core": Leaf((2,), "float32", "fragment")}


class Tape:
    """A long past of b columns, its frames numbered 1, 2, 3 …, and the fragments that a sampler would cut from it."""

    def __init__(self, moves: int, columns: int = 3, stack: int = 1, begin: int = 0) -> None:
        rng = np.random.default_rng(moves + stack)
        self.spec = Spec("tape", (2, 3), "uint8", Actions("discrete", (4,)), stack=stack)
        self.schema = trajectory_schema(self.spec, EXTRAS, CARRY)
        self.columns = np.arange(10, 10 + columns, dtype=np.int32)
        self.first = rng.random((moves + 1, columns)) < 0.15
        self.first[0] = True
        number = np.arange(1, moves + 2)[:, None, None, None] + 60 * np.arange(columns)[None, :, None, None]
        self.frames = np.broadcast_to(number, (moves + 1, columns, 2, 3)).astype(np.uint8)
        self.stacks = np.stack([self._stack(row) for row in range(moves + 1)])  # [moves + 1, b, stack, 2, 3]
        valid = ~self.first[1:]
        self.step = begin + np.concatenate([np.zeros((1, columns), np.int64), np.cumsum(valid, 0)])
        self.action = rng.integers(0, 4, (moves, columns))
        self.reward = rng.normal(size=(moves, columns)).astype(np.float32)
        last = np.concatenate([self.first[2:], np.zeros((1, columns), bool)])
        self.score = np.where(last & valid, self.reward, np.nan).astype(np.float32)

    def _stack(self, row: int) -> Array:
        """What the environment itself shows: zeros before the episode's first frame."""
        out = np.zeros((self.first.shape[1], self.spec.stack, 2, 3), np.uint8)
        for column in range(len(out)):
            age = 0
            while age < self.spec.stack and row >= age:
                out[column, -1 - age] = self.frames[row - age, column]
                if self.first[row - age, column]:
                    break
                age += 1
        return out

    def fragment(self, begin: int, moves: int) -> Tree:
        end, columns = begin + moves, len(self.columns)
        frames = np.concatenate([self.stacks[begin].swapaxes(0, 1), self.frames[begin + 1 : end + 1]])
        return {
            "observation": frames,
            "first": self.first[begin : end + 1],
            "action": self.action[begin:end],
            "reward": self.reward[begin:end],
            "discount": np.ones((moves, columns), np.float32),
            "version": np.tile(np.arange(begin, end)[:, None], (1, columns)),
            "episode_return": self.score[begin:end],
            "episode_success": np.where(np.isfinite(self.score[begin:end]), 1, np.nan).astype(np.float32),
            "episode_length": np.isfinite(self.score[begin:end]).astype(np.int32),
            "column": self.columns,
            "start": self.step[begin],
            "attempt": np.zeros(columns, np.int32),
            "extras/log_prob": -self.reward[begin:end],
            "carry/core": np.full((columns, 2), begin, np.float32),
        }


def recorder(run: Path, tape: Tape, attempt: int = 0, keep: list[bool] | None = None, **options: object) -> Recorder:
    folder = run / "trajectories" / f"a{attempt}-actor-3"
    mask = np.array(keep or [True] * len(tape.columns))
    return Recorder(folder, tape.schema, tape.spec, tape.columns, mask, attempt, **options)  # type: ignore[arg-type]


def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows, so that short tapes cross many chunk borders."""
    monkeypatch.setattr(trajectories, "_CHUNK_BYTES", 128 * 3)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_segments_are_the_tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: int, compression: str) -> None:
    small_buffers(monkeypatch)
    tape = Tape(200, stack=stack)
    to = recorder(tmp_path, tape, compression=compression, attributes={"algorithm": "ppo"})
    message = tape.fragment(0, 10)
    for begin in range(0, 200, 10):
        for name, leaf in tape.fragment(begin, 10).items():
            message[name] = message[name].copy()
            message[name][...] = leaf  # as in a channel: the memory of the fragment before is used again
        to.write(message)
        for leaf in message.values():
            leaf[...] = 0
        if begin == 90:
            to.roll()
    to.close()
    paths = segments.segments(tmp_path)
    assert len(paths) == 2
    cuts = [(0, 100), (100, 200)]
    for path, (begin, end) in zip(paths, cuts, strict=True):
        expected = tape.fragment(begin, end - begin)
        for name, leaf in expected.items():
            rows = segments.read(path, name)
            assert rows.dtype == tape.schema[name].dtype
            if name != "observation":
                np.testing.assert_array_equal(rows, leaf, err_msg=name)
        frames = torch.from_numpy(segments.read(path, "observation"))
        rebuilt = stacked(frames, torch.from_numpy(expected["first"]), stack, "zeros")
        np.testing.assert_array_equal(rebuilt, tape.stacks[begin : end + 1])
        assert len(frames) == end - begin + stack
        segment = segments.describe(path)
        assert (segment.attempt, segment.role, segment.index) == (0, "actor", 3)
        np.testing.assert_array_equal(segment.start, tape.step[begin])
        np.testing.assert_array_equal(segment.stop, tape.step[end])
    np.testing.assert_array_equal(to.closed, tape.step[200])
    assert to.bytes_written > 200 * 3 * 6


def test_attributes_explain_the_file(tmp_path: Path) -> None:
    tape = Tape(10)
    to = recorder(tmp_path, tape, attributes={"algorithm": "ppo", "seed": 3})
    to.write(tape.fragment(0, 10))
    to.close()
    with h5py.File(segments.segments(tmp_path)[0]) as file:
        assert file.attrs["algorithm"] == "ppo" and file.attrs["seed"] == 3 and file.attrs["attempt"] == 0
        assert json.loads(file.attrs["spec"])["frame"] == [2, 3]
        assert file["version"].attrs["unit"] == "update" and "terminated" in file["discount"].attrs["doc"]


def test_only_kept_columns_are_recorded(tmp_path: Path) -> None:
    tape = Tape(40, stack=4)
    to = recorder(tmp_path, tape, keep=[True, False, True])
    to.write(tape.fragment(0, 20))
    np.testing.assert_array_equal(to.closed, [0, tape.step[20, 1], 0])  # nobody waits for the column in the middle
    to.write(tape.fragment(20, 20))
    to.close()
    (path,) = segments.segments(tmp_path)
    np.testing.assert_array_equal(segments.describe(path).columns, [10, 12])
    np.testing.assert_array_equal(segments.read(path, "reward"), tape.reward[:, [0, 2]])
    np.testing.assert_array_equal(segments.read(path, "carry/core"), np.zeros((2, 2)))
    np.testing.assert_array_equal(segments.read(path, "observation")[4:], tape.frames[1:, [0, 2]])
    np.testing.assert_array_equal(to.closed, tape.step[40])


def test_recording_nothing_writes_nothing(tmp_path: Path) -> None:
    tape = Tape(20)
    to = recorder(tmp_path, tape, keep=[False] * 3)
    to.write(tape.fragment(0, 20))
    to.roll()
    np.testing.assert_array_equal(to.closed, tape.step[20])
    assert list(tmp_path.iterdir()) == [] and to.bytes_written == 0


def test_segments_roll_by_size_and_by_age(tmp_path: Path) -> None:
    tape = Tape(60)
    to = recorder(tmp_path / "size", tape, segment_bytes=1)
    for begin in range(0, 60, 20):
        to.write(tape.fragment(begin, 20))
        np.testing.assert_array_equal(to.closed, tape.step[begin + 20])
    assert len(segments.segments(tmp_path / "size")) == 3
    to = recorder(tmp_path / "age", tape, segment_s=600.0)
    to.write(tape.fragment(0, 20))
    assert segments.segments(tmp_path / "age") == [] and not to.closed.any()
    to._opened -= 600.0  # as if it had waited: a busy machine is slower than any short age
    to.write(tape.fragment(20, 20))
    assert len(segments.segments(tmp_path / "age")) == 1


def test_a_gap_starts_a_new_segment(tmp_path: Path) -> None:
    tape = Tape(60)
    to = recorder(tmp_path, tape)
    to.write(tape.fragment(0, 20))
    to.write(tape.fragment(40, 20))
    to.close()
    first, second = map(segments.describe, segments.segments(tmp_path))
    np.testing.assert_array_equal(first.stop, tape.step[20])
    np.testing.assert_array_equal(second.start, tape.step[40])


def test_a_fragment_of_wrong_length_is_named(tmp_path: Path) -> None:
    tape = Tape(20)
    fragment = tape.fragment(0, 20) | {"reward": tape.reward[:7]}
    with pytest.raises(ValueError, match="'reward' has 7 rows; 20 moves need 20"):
        recorder(tmp_path, tape).write(fragment)


def test_a_second_recorder_never_overwrites(tmp_path: Path) -> None:
    tape = Tape(40)
    for begin in (0, 20):
        to = recorder(tmp_path, tape)
        to.write(tape.fragment(begin, 20))
        to.close()
    assert [segments.describe(path).number for path in segments.segments(tmp_path)] == [0, 1]


def test_files_being_written_and_strangers_are_left_out(tmp_path: Path) -> None:
    tape = Tape(20)
    to = recorder(tmp_path, tape)
    to.write(tape.fragment(0, 20))
    folder = tmp_path / "trajectories" / "a0-actor-3"
    assert [path.name for path in folder.iterdir()] == ["segment-000000.h5.tmp"]
    (tmp_path / "trajectories" / "notes").mkdir()
    (tmp_path / "trajectories" / "notes" / "segment-000000.h5").write_text("mine")
    assert segments.segments(tmp_path) == []
    (folder / "segment-000007.h5").write_text("not HDF5")
    with pytest.raises(BadSegment, match=r"segment-000007\.h5 is not a readable segment"):
        segments.describe(folder / "segment-000007.h5")


def test_segments_are_sorted_by_number_not_by_text(tmp_path: Path) -> None:
    for folder in ("a10-actor-0", "a2-actor-10", "a2-actor-9", "a2-env_worker-0"):
        (tmp_path / "trajectories" / folder).mkdir(parents=True)
        (tmp_path / "trajectories" / folder / "segment-000000.h5").touch()
    folders = [path.parent.name for path in segments.segments(tmp_path)]
    assert folders == ["a2-actor-9", "a2-actor-10", "a2-env_worker-0", "a10-actor-0"]


def test_gzip_without_hdf5plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5, "hdf5plugin", None)
    tape = Tape(20)
    to = recorder(tmp_path, tape)
    to.write(tape.fragment(0, 20))
    to.close()
    with h5py.File(segments.segments(tmp_path)[0]) as file:
        assert file["reward"].compression == "gzip"


def test_what_reads_back_wrong_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape(20)
    to = recorder(tmp_path, tape)
    to.write(tape.fragment(0, 20))
    to.roll()
    to.write(tape.fragment(0, 20))

    def scratched(temporary: Path, expected: dict[str, tuple[int, Array]]) -> None:
        with h5py.File(temporary, "r+") as file:
            file["reward"][-1] = 77.0
        verify(temporary, expected)

    verify = trajectories._verify
    monkeypatch.setattr(trajectories, "_verify", scratched)
    with pytest.raises(RecordingFailed, match="reward reads back differently"):
        to.roll()
    assert [path.name for path in segments.segments(tmp_path)] == ["segment-000000.h5"]


FOREVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trajectories import Tape, recorder
tape = Tape(200, stack=4)
to = recorder(Path({run!r}), tape, segment_bytes=1 << 16)
while True:
    for begin in range(0, 200, 20):
        to.write(tape.fragment(begin, 20))
"""


def test_sigkill_costs_the_open_segment_only(tmp_path: Path) -> None:
    code = FOREVER.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while len(segments.segments(tmp_path)) < 3:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    tape, paths = Tape(200, stack=4), segments.segments(tmp_path)
    for path in paths:
        begin = int(segments.read(path, "version")[0, 0])
        rows = min(20, 200 - begin)
        reward = segments.read(path, "reward")[:rows]
        np.testing.assert_array_equal(reward, tape.reward[begin : begin + len(reward)])
        assert len(segments.read(path, "observation")) == len(segments.read(path, "reward")) + 4


def test_a_full_disk_is_said_and_closed_segments_survive(small_disk: Path) -> None:
    tape = Tape(200)
    rng = np.random.default_rng(0)
    to = recorder(small_disk, tape, compression="none")
    to.write(tape.fragment(0, 20))
    to.roll()
    with pytest.raises(RecordingFailed, match=r"segment-000001\.h5\.tmp cannot be written .*No space left.*free space"):
        for _ in range(4000):
            fragment = tape.fragment(0, 20)
            fragment["observation"] = rng.integers(0, 255, fragment["observation"].shape, np.uint8)
            fragment["start"] = to._next if to._next is not None else fragment["start"]
            to.write(fragment)
        to.roll()
    with pytest.raises(RecordingFailed):
        to.write(tape.fragment(0, 20))
    to.close()
    (path,) = segments.segments(small_disk)
    np.testing.assert_array_equal(segments.read(path, "reward"), tape.reward[:20])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    (small_disk / "again").write_bytes(bytes(1 << 19))  # the space is free again, not held by a lost handle


def two_attempts(run: Path, resumed: dict[str, object] | None) -> Tape:
    """Attempt 0 makes 100 rows; attempt 1 starts again at row 60 of the same tape."""
    tape = Tape(100)
    for attempt, begin in ((0, 0), (1, 60)):
        to = recorder(run, tape, attempt)
        for row in range(begin, 100, 20):
            to.write(tape.fragment(row, 20))
        to.close()
    (run / "provenance").mkdir()
    (run / "provenance" / "0000.json").write_text(json.dumps({"resumed_from": {"file": None, "steps": {}}}))
    value = {} if resumed is None else {"resumed_from": resumed}
    (run / "provenance" / "0001.json").write_text(json.dumps(value))
    return tape


def test_abandoned_rows_are_told_by_provenance(tmp_path: Path) -> None:
    steps = {"10": 5, "11": 7, "12": 10**6}
    tape = two_attempts(tmp_path, {"file": "000000001.h5", "steps": steps})
    limits = segments.kept_from(tmp_path)
    old, new = segments.segments(tmp_path)
    valid = ~tape.first[1:]
    np.testing.assert_array_equal(
        recorded.kept(segments.describe(old), limits)[0], valid & (tape.step[:-1] < np.array(list(steps.values())))
    )
    np.testing.assert_array_equal(recorded.kept(segments.describe(new), limits)[0], valid[60:])


def test_abandoned_rows_without_provenance_begin_at_the_next_recording(tmp_path: Path) -> None:
    tape = two_attempts(tmp_path, None)
    limits = segments.kept_from(tmp_path)
    moves = [recorded.kept(segments.describe(path), limits)[0] for path in segments.segments(tmp_path)]
    valid = ~tape.first[1:]
    np.testing.assert_array_equal(moves[0][:60], valid[:60])
    assert not moves[0][60:].any()
    assert sum(x.sum() for x in moves) == valid.sum()  # every move of the tape counts once


def test_an_attempt_from_the_beginning_abandons_everything_before(tmp_path: Path) -> None:
    two_attempts(tmp_path, None)
    fresh: dict[str, object] = {"resumed_from": {"file": None, "steps": {}}}
    (tmp_path / "provenance" / "0002.json").write_text(json.dumps(fresh))
    limits = segments.kept_from(tmp_path)
    assert not any(recorded.kept(segments.describe(path), limits)[0].any() for path in segments.segments(tmp_path))


def test_episodes(tmp_path: Path) -> None:
    tape = two_attempts(tmp_path, None)
    old, _ = segments.segments(tmp_path)
    every = recorded.ends(segments.describe(old), {})
    row, column = np.nonzero(np.isfinite(tape.score))
    np.testing.assert_array_equal(every["column"], tape.columns[column])
    np.testing.assert_array_equal(every["end"], tape.step[row, column] + 1)
    np.testing.assert_array_equal(every["return"], tape.score[row, column])
    assert every["length"].tolist() == [1] * len(row)
    assert every["success"].tolist() == [1] * len(row)
    valid = recorded.ends(segments.describe(old), segments.kept_from(tmp_path))
    assert 0 < len(valid["end"]) == (row < 60).sum() < len(row)


def test_segments_without_success_have_none(tmp_path: Path) -> None:
    """As they were recorded before there was such a leaf."""
    two_attempts(tmp_path, None)
    old, _ = segments.segments(tmp_path)
    with h5py.File(old, "r+") as file:
        del file["episode_success"]
    episodes = recorded.ends(segments.describe(old), {})
    assert len(episodes["return"]) and np.isnan(episodes["success"]).all()
    assert episodes["success"].shape == episodes["return"].shape


def test_read_a_part(tmp_path: Path) -> None:
    tape = two_attempts(tmp_path, None)
    path = segments.segments(tmp_path)[0]
    np.testing.assert_array_equal(segments.read(path, "reward", slice(5, 9)), tape.reward[5:9])
    with pytest.raises(KeyError):
        segments.read(path, "nothing")


@pytest.mark.parametrize(
    ("shape", "dtype", "columns", "chunk"),
    [
        ((84, 84), "uint8", 32, (128, 1, 84, 84)),
        ((84, 84), "uint8", 256, (16, 1, 84, 84)),
        ((), "float32", 32, (4096, 32)),
        ((17,), "float64", 32, (128, 32, 17)),
        ((1024, 1024, 3), "uint8", 1, (1, 1, 1024, 1024, 3)),
    ],
)
def test_chunks(shape: tuple[int, ...], dtype: str, columns: int, chunk: tuple[int, ...]) -> None:
    series = trajectories._series(Leaf(shape, dtype), columns)
    assert series.chunk == chunk
    assert series.buffer.nbytes <= 32 << 20
