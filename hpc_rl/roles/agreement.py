"""What synchronous ranks must know alike: what all of them collected, and who wants to stop or save."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from hpc_rl.algorithms.base import Group
from hpc_rl.roles.base import Seat
from hpc_rl.roles.tally import OUT_OF_TIME, Tally
from hpc_rl.storage.run_dir import BUDGET_SPENT
from hpc_rl.types import Tree


@dataclass(frozen=True)
class Wishes:
    """The same on every rank; clocks and signals differ between ranks, so they are reduced and never read alone."""

    stop: str | None
    save: bool


def booked(group: Group, tally: Tally, tree: Tree, seat: Seat, save: bool) -> Wishes:
    """Add what all ranks collected to ``tally``, in column order, by one reduction of sums that carries the wishes."""
    total, low = seat.job.environment.columns, seat.place.columns.start
    mine = slice(low, low + len(seat.place.columns))
    returns = tree["episode_return"]
    table = np.zeros((3, len(returns), total))
    table[0, :, mine] = ~tree["first"][1:]
    table[1, :, mine] = np.nan_to_num(returns)
    table[2, :, mine] = np.isfinite(returns)
    limit = seat.job.budget.time_limit_s
    late = bool(limit) and time.monotonic() - seat.started > limit
    packed = np.concatenate([table.ravel(), np.array([seat.stop(), late, seat.out_of_time(), save], float)])
    reduced = group.sum(torch.from_numpy(packed)).numpy()
    moves, sums, ended = reduced[:-4].reshape(table.shape)
    tally.env_steps += int(moves.sum())
    for column in range(total):
        tally.through[column] = tally.through.get(column, 0) + int(moves[:, column].sum())
    tally.finished(np.where(ended > 0, sums, np.nan).ravel())
    tally.lags.append(0.0)
    asked, late, over, save = (bool(x) for x in reduced[-4:] > 0)
    stop = "stopped: asked to stop" if asked else f"{BUDGET_SPENT} {limit:.0f} s" if late else None
    return Wishes(OUT_OF_TIME if over else stop, save)
