"""What synchronous ranks must know alike: what all of them collected, and who votes to stop or save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from hpc_rl.devices import to_device, to_host
from hpc_rl.optim.group import Group
from hpc_rl.runtime.checkpoint_scheduler import CheckpointScheduler, Due
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import RECENT, Counters, ended
from hpc_rl.runtime.learner_state import check_identical
from hpc_rl.runtime.summary import steady
from hpc_rl.runtime.training import Training
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME
from hpc_rl.types import Array, Tree

CHECK_EVERY = 100  # updates between comparisons of all ranks' parameters


@dataclass(frozen=True)
class Votes:
    """The same on every rank; clocks and signals differ between ranks, so they are reduced and never read alone."""

    stop: str | None
    save: bool  # a checkpoint is to be written
    judge: bool  # a policy is to be judged
    closed: Array  # [B] int64, env step up to which each column lies in closed segments


def settled(training: Training, scheduler: CheckpointScheduler, version: int) -> Votes:
    """What follows the updates of a round on every rank that learns in a group: count, vote, compare.

    ``version`` is the update that the round began with. Collective.
    """
    context, counters, store, group = training.context, training.counters, training.store, training.learner.group
    votes = reduce_counters(group, counters, store.arrivals(), context, scheduler.wanted(), version)
    store.release()
    steady(counters, context.started)
    if counters.updates // CHECK_EVERY > version // CHECK_EVERY:
        check_identical(training.learner)
    return votes


def reduce_counters(
    group: Group, counters: Counters, trees: Sequence[Tree], context: RankContext, wanted: Due, version: int
) -> Votes:
    """Add every learner's counters to ``counters`` and reduce the votes to stop, save and judge, in one all-reduce.

    ``trees`` were learned from at update ``version``. Its size depends on columns and ranks and not on T: every member
    fills its own block of columns and its own rows of ended episodes, so that a sum puts them side by side, in the same
    order for any layout. Of the episodes that ended only the last `RECENT` matter.
    """
    plan, limit = context.plan, context.job.budget.time_limit_s
    share = plan.batch_columns // group.size
    mine = slice(group.rank * share, (group.rank + 1) * share)
    heads, games = np.zeros((5, plan.batch_columns)), np.zeros((group.size, min(RECENT, plan.steps * share), 3))
    moves = _together(trees, "first", lambda x: (~x[1:]).sum(0))
    heads[0, mine], heads[1, mine] = _together(trees, "column"), moves
    heads[2, mine] = _together(trees, "start") + moves
    heads[3, mine] = version - _together(trees, "version", lambda x: x.mean(0))
    heads[4, mine] = _together(trees, "closed") if "closed" in trees[0] else 0
    episodes = _fill(games[group.rank], trees, group.rank * share)
    late = bool(limit) and time.monotonic() - context.started > limit
    votes = np.array([episodes, context.stop(), late, context.out_of_time(), *astuple(wanted)], float)
    reduced = to_host(group.sum(to_device(np.concatenate([heads.ravel(), games.ravel(), votes]), "cpu")))
    columns, moves, through, lags, closed = reduced[: heads.size].reshape(heads.shape)
    order = columns.astype(np.int64)
    counters.count(int(moves.sum()), order, through.astype(np.int64), float(lags.mean()))
    counters.ended(int(reduced[-7]), _in_order(reduced[heads.size : -7].reshape(-1, 3)))
    asked, late, over, save, judge, counters.reached = (bool(x) for x in reduced[-6:] > 0)
    stop = "stopped: asked to stop" if asked else f"{BUDGET_SPENT} {limit:.0f} s" if late else None
    reached = np.zeros(counters.columns, np.int64)
    reached[order] = closed
    return Votes(OUT_OF_TIME if over else stop, save, judge, reached)


def _together(trees: Sequence[Tree], name: str, of: Callable[[Array], Array] = lambda x: x) -> Array:
    """A number per column of all fragments side by side, [b]."""
    return np.concatenate([of(tree[name]) for tree in trees])


def _fill(rows: Array, trees: Sequence[Tree], low: int) -> int:
    """The last episodes that ended go into ``rows`` [n, 3]: 1 + row t, place in the batch, return. How many ended."""
    places = np.cumsum([low, *(len(tree["column"]) for tree in trees)])
    tables = [ended(tree) + np.array([1, place, 0]) for tree, place in zip(trees, places, strict=False)]
    table = _sorted(np.concatenate(tables))
    last = table[-len(rows) :]
    rows[: len(last)] = last
    return len(table)


def _sorted(table: Array) -> Array:
    """Rows (t, place, return) by time, then place."""
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def _in_order(table: Array) -> Array:
    """The returns [n] of all members' rows, those that hold an episode, by time and then place in the batch."""
    return _sorted(table[table[:, 0] > 0])[:, 2]
