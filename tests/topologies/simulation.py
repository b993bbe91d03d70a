"""What each way of sampling could reach on the latency environment if nothing but the environment took time.

A column's rows are moves of log-normal seconds, and after a move that ended an episode a row of ``reset_s`` that counts
as no env step. The three ways differ only in who waits for whom:

step         all columns wait for each other at every row                      (A2C, lock-step)
trajectory   all columns wait for each other after every T rows                (A2C, one column a rank)
free         no column waits for another                                       (A3C, IMPALA, SEED)
"""

from __future__ import annotations

import numpy as np

STEP_S, CV, RESET_S, END, T = 0.02, 0.5, 1.0, 1 / 50, 20


def rows(rng: np.random.Generator, count: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, is an env step) of ``count`` rows of every column, [count, columns] each."""
    sigma = np.sqrt(np.log1p(CV**2))
    seconds = rng.lognormal(np.log(STEP_S) - sigma**2 / 2, sigma, (count, columns))
    moved = np.ones((count, columns), bool)
    ends = rng.random((count, columns)) < END
    for t in range(1, count):
        moved[t] = ~(moved[t - 1] & ends[t - 1])
    return np.where(moved, seconds, RESET_S), moved


def ideal(way: str, columns: int, fragments: int = 4000, seed: int = 0) -> float:
    """Env steps per second of all columns together."""
    seconds, moved = rows(np.random.default_rng(seed), fragments * T, columns)
    if way == "step":
        return float(moved.sum() / seconds.max(1).sum())
    if way == "trajectory":
        return float(moved.sum() / seconds.reshape(fragments, T, columns).sum(1).max(1).sum())
    return float((moved.sum(0) / seconds.sum(0)).sum())


if __name__ == "__main__":
    for columns in (8, 16, 32):
        print(columns, {way: round(ideal(way, columns), 1) for way in ("step", "trajectory", "free")})
