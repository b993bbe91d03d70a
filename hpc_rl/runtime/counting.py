"""Counters where only the first learner receives what is to be counted: it counts, and all others take its figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_rl.devices import to_device, to_host
from hpc_rl.optim.group import Group
from hpc_rl.runtime.counters import RECENT, Counters, Due, Limits, Votes, decided, votes_of
from hpc_rl.types import Tree

FIGURES = 3  # env steps, episodes, returns that are kept


def count_arrivals(group: Group, counters: Counters, trees: Sequence[Tree], limits: Limits, due: Due) -> Votes:
    """Count new fragments on the first member, make its counters everybody's, and reduce the votes. Collective.

    The lag of a fragment is that of its arrival.
    """
    closed = np.zeros(counters.columns, np.int64)
    for tree in trees:
        counters.add(tree, counters.updates)
        np.maximum.at(closed, tree["column"], tree["closed"])
    votes = votes_of(limits, due)
    row = np.zeros(len(votes) + FIGURES + RECENT + counters.columns)
    row[: len(votes)] = votes
    figures = row[len(votes) :]
    if group.rank == 0:
        figures[:FIGURES] = counters.env_steps, counters.episodes, len(counters.recent)
        figures[FIGURES : FIGURES + len(counters.recent)] = counters.recent
        figures[FIGURES + RECENT :] = counters.through
    reduced = to_host(group.sum(to_device(row, "cpu")))
    figures = reduced[len(votes) :]
    counters.env_steps, counters.episodes = int(figures[0]), int(figures[1])
    counters.recent.clear()
    counters.recent.extend(figures[FIGURES : FIGURES + int(figures[2])].tolist())
    counters.through[:] = figures[FIGURES + RECENT :].astype(np.int64)
    return decided(reduced[: len(votes)], counters, limits, closed)
