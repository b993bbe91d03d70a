"""The other benchmarks run and give figures of the right kind; what they measure is nobody's test."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.bench import counters, mpi, replay, samplers
from hpc_rl.host_memory import keep_freed


def test_the_exchange_is_measured_by_two_ranks() -> None:
    rows = mpi.measure(2)
    assert [row["size"] for row in rows] == list(mpi.SIZES)
    assert all(float(row["raw_s"]) > 0 and float(row["ours_s"]) > 0 and float(row["ratio"]) > 0 for row in rows)
    assert "Nature" in mpi.render(rows, 2)


def test_an_exchange_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "LIMIT_S", 0.01)
    with pytest.raises(mpi.NoExchange, match=r"2 ranks took more than 0\.01 s; use as many as there are cores"):
        mpi.measure(2)
    monkeypatch.setattr("sys.executable", "/bin/false")
    monkeypatch.setattr(mpi, "LIMIT_S", 60)
    with pytest.raises(mpi.NoExchange, match=r"-n 2 ended with exit code 1 .*hpc-rl doctor"):
        mpi.measure(2)


def test_alternating_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "PAIRS", 1)
    monkeypatch.setattr(samplers, "COLUMNS", 8)
    monkeypatch.setattr(samplers, "HIDDEN", (64,))
    figures = samplers.measure()
    assert figures["vector_s"] > figures["step_s"] > 0 and figures["ratio"] > 0
    assert "alternating is faster" in samplers.render(figures)


def test_counting_an_update_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "ROUNDS", 1)
    rows = counters.measure()
    assert [(row["columns"], row["moves"]) for row in rows] == [
        (columns, moves) for columns in counters.COLUMNS for moves in counters.MOVES
    ]
    assert all(row["us"] > 0 for row in rows)
    assert counters.render(rows).count("\n") == 1 + len(counters.COLUMNS)


def test_memory_that_was_freed_hides_nothing() -> None:
    """What a process had freed and kept is no longer taken for what a replay holds."""
    keep_freed()
    blocks = [np.ones(20_000_000 // 8) for _ in range(10)]
    del blocks
    _, held = replay._filled(lambda count: np.ones(count * 1_000), 10_000)
    assert held > 7_900


def test_a_replay_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours alone, in whatever environment; all ways give the same items."""
    monkeypatch.setattr(replay, "find_spec", lambda name: None)
    monkeypatch.setattr(replay, "BLOCKS", 1)
    rows = replay.measure(10_000, 0.01)
    assert [row.name for row in rows] == [
        "hpc_rl, in process", "hpc_rl, in process, stacks copied", "hpc_rl, replay rank",
    ]  # fmt: skip
    assert all(row.samples_per_s > 0 and row.bytes_per_transition > 7056 for row in rows)
    assert rows[0].updates_per_s > 0 and rows[1].updates_per_s == 0
    assert replay.render(rows, 10_000).count("\n") == 4


def test_a_drawn_batch_has_the_frames_that_were_inserted() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (replay.FRAMES, 84, 84), dtype=np.uint8)
    in_process, copied, by_message = replay._ours(8000, frames)
    batch, weights, _ = in_process.draw(3)
    assert batch.observation.shape == (2, replay.BATCH, 4, 84, 84) and batch.valid.all()
    row = batch.start + batch.start // (replay.EPISODE - 1)
    n = int((row % replay.EPISODE >= 3).int().argmax())  # the frames before it are of its episode
    at = (row[n] + 211 * batch.column[n] + np.arange(-3, 2)) % replay.FRAMES
    assert np.array_equal(batch.observation[0, n].numpy(), frames[at[:4]])
    assert np.array_equal(batch.observation[1, n].numpy(), frames[at[1:]])
    assert (copied.draw(3)[0] == batch.observation).all() and weights.max() <= 1
    sent, other, keys = by_message.draw(3)
    assert sent.observation.shape == batch.observation.shape and len(keys) == len(other)
