"""What counting one update costs: the counters of a fragment and the votes, before and apart from the network."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from hpc_rl.optim.alone import Alone
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.runtime.counters import Counters, Due, Limits, reduce_counters
from hpc_rl.types import Array, Tree

COLUMNS, MOVES = (32, 1024, 16384), (5, 20, 128)
ROUNDS = 30


def measure() -> list[dict[str, float]]:
    """[{columns, moves, us}]: median microseconds per update of one learner that has all columns."""
    return [{"columns": b, "moves": t, "us": 1e6 * _seconds(b, t)} for b in COLUMNS for t in MOVES]


def render(rows: list[dict[str, float]]) -> str:
    lines = ["counting one update, µs (rows: columns; an episode ends in one of 50 moves)"]
    lines.append("".join([" " * 10, *(f"{f'T = {moves}':>12}" for moves in MOVES)]))
    for columns in COLUMNS:
        times = [row["us"] for row in rows if row["columns"] == columns]
        lines.append(f"{columns:>10,}" + "".join(f"{us:>12,.0f}" for us in times))
    return "\n".join(lines)


def _seconds(columns: int, moves: int) -> float:
    worker = RankSpec(0, "worker", 0, range(columns), threads=1, learns=True)
    tree, plan = _fragment(columns, moves), Plan("solo", (worker,), moves, columns, columns)
    counters, limits, group = Counters(columns), Limits(lambda: False), Alone()
    times = []
    for version in range(ROUNDS):
        begin = time.perf_counter()
        reduce_counters(group, counters, [tree], plan, limits, Due(), version)
        times.append(time.perf_counter() - begin)
    return median(times)


def _fragment(columns: int, moves: int) -> Tree:
    """Those leaves of a fragment that are counted."""
    draw = np.random.default_rng(1)
    ends: Array = draw.random((moves, columns)) < 0.02
    return {
        "first": np.concatenate([np.zeros((1, columns), bool), ends]),
        "episode_return": np.where(ends, 1.0, np.nan).astype(np.float32),
        "version": np.zeros((moves, columns), np.int64),
        "column": np.arange(columns, dtype=np.int32),
        "start": np.zeros(columns, np.int64),
    }
