"""The ideals of the latency environment: against the toy itself, against arithmetic, and the claim of Table 1."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.envs import toys
from hpc_rl.envs.make import make
from tests.topologies.simulation import CV, END, RESET_S, STEP_S, ideal, rows


def test_rows_are_those_of_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys.time, "sleep", lambda seconds: None)
    toy = make("toy/latency", {}, 64)
    toy.reset(np.arange(64))
    busy, first = [], []
    for _ in range(600):
        toy.send(np.zeros(64, np.int64))
        moves = toy.recv()
        busy.append(toy.state()["memory"]["busy_s"])
        first.append(moves.first)
    seconds, moved = rows(np.random.default_rng(1), 600, 64)
    busy_times, resets = np.array(busy), np.array(first)
    assert busy_times[~resets].mean() == pytest.approx(STEP_S, rel=0.02) and (busy_times[resets] == RESET_S).all()
    assert busy_times[~resets].std() / STEP_S == pytest.approx(CV, rel=0.05)
    assert resets.mean() == pytest.approx((~moved).mean(), rel=0.1)
    assert seconds[moved].mean() == pytest.approx(STEP_S, rel=0.02)


def test_free_columns_move_as_arithmetic_says() -> None:
    episode = 1 / END * STEP_S + RESET_S
    assert ideal("free", 8) == pytest.approx(8 / END / episode, rel=0.02)


def test_the_order_of_table_1() -> None:
    step, trajectory, free = (ideal(way, 32, 1000) for way in ("step", "trajectory", "free"))
    assert trajectory > 3.5 * step and free > 2.5 * trajectory
