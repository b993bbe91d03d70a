"""What synchronous ranks must know alike: what all of them collected, and who wants to stop or save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_rl.algorithms.base import Group
from hpc_rl.devices import to_device, to_host
from hpc_rl.roles.base import Seat
from hpc_rl.roles.tally import Tally
from hpc_rl.storage.run_dir import BUDGET_SPENT, OUT_OF_TIME
from hpc_rl.types import Array, Tree

CHECK_EVERY = 100  # updates between comparisons of all ranks' parameters


@dataclass(frozen=True)
class Wishes:
    """The same on every rank; clocks and signals differ between ranks, so they are reduced and never read alone."""

    stop: str | None
    save: bool
    closed: dict[int, int]  # column -> env step up to which it lies in closed segments


def booked(group: Group, tally: Tally, trees: Sequence[Tree], seat: Seat, save: bool) -> Wishes:
    """Add what all of the group learned from to ``tally``, by one reduction of sums that carries the wishes.

    Every member fills its own block of columns, so a sum puts them side by side, in the same order for any layout.
    """
    plan, limit = seat.plan, seat.job.budget.time_limit_s
    share = plan.batch_columns // group.size
    mine = slice(group.rank * share, (group.rank + 1) * share)
    rows, heads = np.zeros((3, plan.steps, plan.batch_columns)), np.zeros((4, plan.batch_columns))

    def together(name: str) -> Array:
        return np.concatenate([tree[name] for tree in trees], -1)

    valid, returns = ~together("first")[1:], together("episode_return")
    rows[:, :, mine] = valid, np.nan_to_num(returns), np.isfinite(returns)
    heads[0, mine], heads[1, mine] = together("column"), together("start") + valid.sum(0)
    heads[2, mine] = tally.updates - together("version").mean(0)
    heads[3, mine] = together("closed") if "closed" in trees[0] else 0
    late = bool(limit) and time.monotonic() - seat.started > limit
    wishes = np.array([seat.stop(), late, seat.out_of_time(), save], float)
    reduced = to_host(group.sum(to_device(np.concatenate([rows.ravel(), heads.ravel(), wishes]), "cpu")))
    moves, sums, ended = reduced[: rows.size].reshape(rows.shape)
    columns, through, lags, closed = reduced[rows.size : -4].reshape(heads.shape)
    tally.book(int(moves.sum()), columns, through, np.where(ended > 0, sums, np.nan).ravel(), float(lags.mean()))
    asked, late, over, save = (bool(x) for x in reduced[-4:] > 0)
    stop = "stopped: asked to stop" if asked else f"{BUDGET_SPENT} {limit:.0f} s" if late else None
    reached = {int(column): int(step) for column, step in zip(columns, closed, strict=True)}
    return Wishes(OUT_OF_TIME if over else stop, save, reached)
