"""The loop of every rank that learns: new experience, the updates that it allows, then what the role does with them.

Worker, learner and gradient worker differ in where experience comes from, in their group, and in what follows a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hpc_rl.algorithms.base import Learner
from hpc_rl.devices import to_device, to_host
from hpc_rl.fragments import trajectory
from hpc_rl.plan import Plan
from hpc_rl.replay.base import Store
from hpc_rl.replay.fresh import Fresh
from hpc_rl.runtime.context import Method
from hpc_rl.runtime.counters import Counters, Due, Limits, Votes, reduce_counters
from hpc_rl.runtime.divergence import cause_of, check_identical, in_a_row
from hpc_rl.samplers.base import Timings
from hpc_rl.types import Clock, Trajectory, UpdateResult

CHECK_EVERY = 100  # updates between comparisons of all ranks' parameters


@dataclass
class Training:
    """What one rank learns with: its learner, its experience, the counters, and the seconds by activity."""

    method: Method
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
        Diverged: see `update`.
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


def _due(training: Training) -> int:
    """Updates to make now, the same number on every member: the least that any member's experience allows.

    Fresh fragments are one update for everybody; that needs no reduction.
    """
    group, due = training.learner.group, training.store.due()
    if group.size == 1 or isinstance(training.store, Fresh):
        return due
    return -int(group.max(to_device(np.array([-float(due)]), "cpu")))


def _update(training: Training) -> Metrics:
    method, counters = training.method, training.counters
    samples = training.store.sample(counters.updates)
    batches = {name: trajectory(trees, method.spec, method.device) for name, (trees, _) in samples.items()}
    result = update(method, training.learner, batches, counters)
    counters.updates += 1
    _, keys = samples.get(method.prioritised, ([], None))
    if result.priorities is not None and keys is not None:
        training.store.reprioritize(keys, to_host(result.priorities))
    return result.metrics


def update(method: Method, learner: Learner, batches: Mapping[str, Trajectory], counters: Counters) -> UpdateResult:
    """The learner's update; metrics also count the steps that were dropped so far, "dropped_steps".

    Raises:
        Diverged: the tenth update in a row that dropped a step or took none; names update, columns, env steps, cause.
    """
    group, steps_taken, dropped = learner.group, learner.group.taken, learner.group.dropped
    result = learner.update(batches, method.progress(counters.env_steps, counters.updates))
    useless = group.dropped > dropped or (bool(learner.optimizers) and group.taken == steps_taken)
    place = f"{method.name}, update {counters.updates}"
    counters.bad_updates = in_a_row(
        counters.bad_updates, useless, place, lambda: cause_of(group, next(iter(batches.values())))
    )
    return replace(result, metrics={**result.metrics, "dropped_steps": float(group.dropped)})


def _announce(training: Training) -> None:
    """Show the learner those leaves of new fragments that its method asks for."""
    names, device = training.method.arrivals, training.method.device
    for tree in training.store.arrivals() if names else []:
        training.learner.arrived({name: to_device(tree[name], device) for name in names})


def settled(training: Training, plan: Plan, limits: Limits, due: Due, version: int) -> Votes:
    """What follows the updates of a round on every rank that learns in a group: count, vote, compare.

    ``due`` is what this rank calls for, ``version`` the update that the round began with. Collective.
    """
    learner, counters, store = training.learner, training.counters, training.store
    votes = reduce_counters(learner.group, counters, store.arrivals(), plan, limits, due, version)
    store.release()
    counters.mark_steady(limits.started)
    if counters.updates // CHECK_EVERY > version // CHECK_EVERY:
        check_identical(learner)
    return votes
