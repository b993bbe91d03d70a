"""What each gradient worker's learner keeps for itself and no server ever has: counters, seeds, PPO's β.

These are the plain numbers at the top of a learner's state. A worker reports them with every fragment; checkpoints hold
them by column, so that they find their worker again whatever the number of ranks.
"""

from __future__ import annotations

import numpy as np
import torch

from hpc_rl.algorithms.base import Learner
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.files import Resume
from hpc_rl.types import Array, Leaf, Schema, Tree


def numbers(learner: Learner) -> dict[str, int | float]:
    """Those of a learner's state, by name."""
    state = learner.state()
    return {name: x for name, x in state.items() if isinstance(x, int | float) and not isinstance(x, bool)}


def restore(learner: Learner, resume: Resume, column: int) -> None:
    """Give a worker's learner the numbers that belonged to its first ``column``; older checkpoints have none."""
    saved: dict[str, torch.Tensor] = resume[0].get("workers", {}) if resume else {}
    current = numbers(learner)
    restored = {name: type(x)(saved[name][column].item()) for name, x in current.items() if name in saved}
    if restored:
        learner.load({**learner.state(), **restored})


def report_schema(sent: Schema, count: int) -> Schema:
    """Those leaves of a fragment that `Counters` adds up, and ``count`` numbers of the worker's learner, if any."""
    counted = {name: sent[name] for name in ("first", "version", "episode_return", "column", "start", "closed")}
    return {**counted, "kept": Leaf((count,), "float64", "fragment")} if count else counted


class WorkerNumbers:
    """What all workers keep, where server 0 saves it."""

    def __init__(self, learner: Learner, resume: Resume, columns: int) -> None:
        current, saved = numbers(learner), resume[0].get("workers", {}) if resume else {}
        self.names = list(current)
        self.table = np.zeros((columns, len(current)))  # float64 holds seeds and counters exactly
        for k, (name, x) in enumerate(current.items()):
            self.table[:, k] = saved.get(name, x)

    def note(self, tree: Tree) -> None:
        """Take what a report says of its worker."""
        if self.names:
            self.table[tree["column"]] = tree["kept"]

    def state(self) -> StateDict:
        """Name -> array [columns] float64."""
        return {name: self.table[:, k].copy() for k, name in enumerate(self.names)}


def rows(learner: Learner, columns: int) -> Array:
    """The numbers of a worker's learner once for each of its columns, float64 [columns, numbers]."""
    return np.tile(np.array(list(numbers(learner).values()), np.float64), (columns, 1))
