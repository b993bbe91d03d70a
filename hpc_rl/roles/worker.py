"""The worker of synchronous training: steps its columns, joins every reduction, leaves at the same update as all."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hpc_rl.fragments import allocate
from hpc_rl.optim.flat import StateDict
from hpc_rl.roles.agreement import settled
from hpc_rl.roles.base import Seat, sampler, schemas
from hpc_rl.roles.conclusion import conclude
from hpc_rl.roles.evaluation import Evaluation
from hpc_rl.roles.records import Records
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver
from hpc_rl.roles.schedule import exploration
from hpc_rl.roles.snapshots import Snapshots
from hpc_rl.roles.stores import store_of
from hpc_rl.roles.summary import finish
from hpc_rl.roles.training import Metrics, Training, restored, train
from hpc_rl.runtime.learner_state import joined_columns, learner_state
from hpc_rl.runtime.tally import complete
from hpc_rl.samplers.base import ACTIVITIES, Split
from hpc_rl.samplers.columns import merged
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.group import learners


def worker(seat: Seat) -> None:
    """Collect, update, record, until all ranks agree to stop. One rank of ``allreduce``, or all of ``solo``."""
    group = learners(seat.ports, seat.plan.learners, seat.job.resources.reduction, seat.device, seat.token, seat.stop)
    learner, tally = restored(seat, group, list(seat.place.columns))
    recorded, split = schemas(learner.policy, seat.spec)[0], Split()
    vector = sampler(seat, learner.policy, split, lambda: None, max(1, seat.place.threads))
    store = store_of(seat, recorded, group)
    if seat.resume:
        vector.load(seat.resume[0]["sampler"])
    training = Training(seat, learner, store, tally, split)
    record = Records(seat, recorded, [vector.columns], [seat.place.name])
    saver, reporter = Saver(seat, tally), Reporter(seat, split, tally.env_steps)
    evaluation = Evaluation(seat, learner.policy, tally)
    snapshots = Snapshots(saver, evaluation)
    tree = allocate(recorded, seat.plan.steps, len(seat.place.columns), seat.spec.stack)

    def fill() -> None:
        vector.explore(exploration(seat, vector.columns, tally.env_steps, tally.updates))
        vector.collect(tree, lambda: tally.updates)
        now = time.perf_counter()
        record.write(tree)
        store.insert(tree)
        split.timed("record", now)

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, snapshots, version)
        reason = complete(seat.job, tally) or votes.stop
        if (votes.save or votes.judge) and not reason:
            record.roll()
            snapshots.begin(_state(training, vector, replay=votes.save))
        split.timed("send", now)
        snapshots.write()
        if reporter.due():
            reporter.report(tally.env_steps, figures(tally) | metrics | vector.figures())
        return reason

    reason = train(training, fill, settle)
    record.close()
    reporter.report(tally.env_steps, figures(tally) | vector.figures())
    state, others = _state(training, vector, replay=True), _others(seat, reporter, split)
    if state is None:
        reporter.close()
        return
    snapshots.finish(state, reason)
    greedy, words = conclude(evaluation, reason, state, snapshots.write)
    finish(seat, tally, reason, reporter, saver, split, others + words, greedy)


def _state(training: Training, vector: Vector, replay: bool) -> StateDict | None:
    """A copy of all that a checkpoint holds, at rank 0, where every rank's columns are gathered; elsewhere None."""
    own: StateDict = {"sampler": vector.state(), "columns": training.learner.columns()}
    own["store"] = training.store.state() if replay else {}
    parts = [from_bytes(part) for part in training.seat.ports.gather(to_bytes(own), training.seat.plan.learners)]
    if not parts:
        return None
    whole = {"sampler": merged([part["sampler"] for part in parts])}
    whole["columns"] = joined_columns([part["columns"] for part in parts])
    whole["stores"] = [part["store"] for part in parts]
    return {**learner_state(training.learner), **whole}


def _others(seat: Seat, reporter: Reporter, split: Split) -> list[dict[str, Any]]:
    """Every other worker's time split and memory, at rank 0."""
    mine = np.array([*(split.seconds[name] for name in ACTIVITIES), float(reporter.peak)])
    parts = seat.ports.gather(mine.tobytes(), seat.plan.learners)
    others = []
    for rank, part in list(enumerate(parts))[1:]:
        values = np.frombuffer(part)
        others.append({"rank": rank, "split_s": values[:-1].tolist(), "peak_rss_bytes": values[-1]})
    return others
