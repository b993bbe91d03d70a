"""The loop of every rank that learns: new experience, the updates that it allows, then what the role does with them.

Worker, learner and gradient worker differ in where experience comes from, in their group, and in what follows a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_rl.algorithms.base import Learner
from hpc_rl.devices import to_device, to_host
from hpc_rl.fragments import trajectory
from hpc_rl.optim.group import Group
from hpc_rl.replay.base import Store
from hpc_rl.replay.fresh import Fresh
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.learner_state import load_columns, load_learner
from hpc_rl.runtime.update import update
from hpc_rl.samplers.base import Timings
from hpc_rl.types import Clock


@dataclass
class Training:
    """What one rank learns with: its learner, its experience, the counters, and the seconds by activity."""

    context: RankContext
    learner: Learner
    store: Store
    counters: Counters
    timings: Timings

    @property
    def clock(self) -> Clock:
        """Of the present weights."""
        return Clock(self.counters.updates, self.counters.env_steps)


Metrics = dict[str, float]


def train(training: Training, fill: Callable[[], str | None], settle: Callable[[Metrics, int], str | None]) -> str:
    """Learn until ``fill`` or ``settle`` gives the reason to end.

    ``fill`` waits for new experience and inserts it; ``settle`` gets the metrics of the round's last update, {} where
    there was none, and the version that the round began with.

    Raises:
        Diverged: see `roles.update.update`.
    """
    counters = training.counters
    reason = None
    while reason is None:
        if reason := fill():
            break
        begin, version, metrics = time.perf_counter(), counters.updates, Metrics()
        _announce(training)
        for _ in range(_due(training)):
            metrics = _update(training)
        training.timings.timed("learn", begin)
        reason = settle(metrics, version)
    return reason


def restored(context: RankContext, group: Group, columns: list[int]) -> tuple[Learner, Counters]:
    """A learner and the counters, as they were saved where the run is resumed; ``columns`` are those it learns from."""
    learner = context.algorithm.learner(context.config, context.spec, context.make_policy(), group)
    counters = Counters(context.job.environment.columns)
    if context.resume:
        state, meta = context.resume
        load_learner(learner, state)
        load_columns(learner, state["columns"], columns)
        counters.restore(meta)
    return learner, counters


def _due(training: Training) -> int:
    """Updates to make now, the same number on every member: the least that any member's experience allows.

    Fresh fragments are one update for everybody; that needs no reduction.
    """
    group, due = training.learner.group, training.store.due()
    if group.size == 1 or isinstance(training.store, Fresh):
        return due
    return -int(group.max(to_device(np.array([-float(due)]), "cpu")))


def _update(training: Training) -> Metrics:
    context, counters = training.context, training.counters
    samples = training.store.sample(counters.updates)
    batches = {name: trajectory(trees, context.spec, context.device) for name, (trees, _) in samples.items()}
    result = update(context, training.learner, batches, counters)
    counters.updates += 1
    keys = next((keys for _, keys in samples.values() if keys is not None), None)
    if result.priorities is not None and keys is not None:
        training.store.reprioritize(keys, to_host(result.priorities))
    return result.metrics


def _announce(training: Training) -> None:
    """Show the learner those leaves of new fragments that its method asks for."""
    context, names = training.context, training.context.experience.arrivals
    for tree in training.store.arrivals() if names else []:
        training.learner.arrived({name: to_device(tree[name], context.device) for name in names})
