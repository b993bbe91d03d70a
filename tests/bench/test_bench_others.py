"""The other benchmarks run and give figures of the right kind; what they measure is nobody's test."""

from __future__ import annotations

import pytest

from hpc_rl.bench import counters, mpi, samplers


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
