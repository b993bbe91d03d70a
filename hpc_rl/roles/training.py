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
from hpc_rl.roles.base import Seat
from hpc_rl.roles.update import update
from hpc_rl.runtime.learner_state import load_columns, load_learner
from hpc_rl.runtime.tally import Tally
from hpc_rl.samplers.base import Split
from hpc_rl.types import Clock


@dataclass
class Training:
    """What one rank learns with: its learner, its experience, the counters, and the seconds by activity."""

    seat: Seat
    learner: Learner
    store: Store
    tally: Tally
    split: Split

    @property
    def clock(self) -> Clock:
        """Of the present weights."""
        return Clock(self.tally.updates, self.tally.env_steps)


Metrics = dict[str, float]


def train(training: Training, fill: Callable[[], str | None], settle: Callable[[Metrics, int], str | None]) -> str:
    """Learn until ``fill`` or ``settle`` gives the reason to end.

    ``fill`` waits for new experience and inserts it; ``settle`` gets the metrics of the round's last update, {} where
    there was none, and the version that the round began with.

    Raises:
        Diverged: see `roles.update.update`.
    """
    tally = training.tally
    reason = None
    while reason is None:
        if reason := fill():
            break
        begin, version, metrics = time.perf_counter(), tally.updates, Metrics()
        _announce(training)
        for _ in range(_due(training)):
            metrics = _update(training)
        training.split.timed("learn", begin)
        reason = settle(metrics, version)
    return reason


def restored(seat: Seat, group: Group, columns: list[int]) -> tuple[Learner, Tally]:
    """A learner and the counters, as they were saved where the run is resumed; ``columns`` are those it learns from."""
    learner = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), group)
    tally = Tally(seat.job.environment.columns)
    if seat.resume:
        state, meta = seat.resume
        load_learner(learner, state)
        load_columns(learner, state["columns"], columns)
        tally.take_up(meta)
    return learner, tally


def _due(training: Training) -> int:
    """Updates to make now, the same number on every member: the least that any member's experience allows.

    Fresh fragments are one update for everybody; that needs no reduction.
    """
    group, due = training.learner.group, training.store.due()
    if group.size == 1 or isinstance(training.store, Fresh):
        return due
    return -int(group.max(to_device(np.array([-float(due)]), "cpu")))


def _update(training: Training) -> Metrics:
    seat, tally = training.seat, training.tally
    samples = training.store.sample(tally.updates)
    batches = {name: trajectory(trees, seat.spec, seat.device) for name, (trees, _) in samples.items()}
    result = update(seat, training.learner, batches, tally)
    tally.updates += 1
    keys = next((keys for _, keys in samples.values() if keys is not None), None)
    if result.priorities is not None and keys is not None:
        training.store.reprioritize(keys, to_host(result.priorities))
    return result.metrics


def _announce(training: Training) -> None:
    """Show the learner those leaves of new fragments that its method asks for."""
    seat, names = training.seat, training.seat.experience.arrivals
    for tree in training.store.arrivals() if names else []:
        training.learner.arrived({name: to_device(tree[name], seat.device) for name in names})
