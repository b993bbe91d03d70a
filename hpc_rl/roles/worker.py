"""The worker of synchronous training: steps its columns, joins every reduction, leaves at the same update as all."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hpc_rl.fragments import allocate
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoint_scheduler import CheckpointScheduler
from hpc_rl.runtime.checkpoint_writer import CheckpointWriter
from hpc_rl.runtime.conclusion import conclude
from hpc_rl.runtime.context import RankContext, make_sampler, schemas
from hpc_rl.runtime.counters import complete
from hpc_rl.runtime.evaluation import Evaluation
from hpc_rl.runtime.learner_state import joined_columns, learner_state
from hpc_rl.runtime.recording import Recording
from hpc_rl.runtime.reporter import Reporter, figures
from hpc_rl.runtime.schedule import exploration
from hpc_rl.runtime.stores import store_of
from hpc_rl.runtime.summary import finish
from hpc_rl.runtime.training import Metrics, Training, restored, train
from hpc_rl.runtime.votes import settled
from hpc_rl.samplers.base import ACTIVITIES, Timings
from hpc_rl.samplers.columns import merged
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.group import learners


def worker(context: RankContext) -> None:
    """Collect, update, record, until all ranks agree to stop. One rank of ``allreduce``, or all of ``solo``."""
    group = learners(
        context.ports,
        context.plan.learners,
        context.job.resources.reduction,
        context.device,
        context.token,
        context.stop,
    )
    learner, counters = restored(context, group, list(context.rank_spec.columns))
    recorded, timings = schemas(learner.policy, context.spec)[0], Timings()
    vector = make_sampler(context, learner.policy, timings, lambda: None, max(1, context.rank_spec.threads))
    store = store_of(context, recorded, group)
    if context.resume:
        vector.load(context.resume[0]["sampler"])
    training = Training(context, learner, store, counters, timings)
    recording = Recording(context, recorded, [vector.columns], [context.rank_spec.name])
    writer, reporter = CheckpointWriter(context, counters), Reporter(context, timings, counters.env_steps)
    evaluation = Evaluation(context, learner.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation)
    tree = allocate(recorded, context.plan.steps, len(context.rank_spec.columns), context.spec.stack)

    def fill() -> None:
        vector.explore(exploration(context, vector.columns, counters.env_steps, counters.updates))
        vector.collect(tree, lambda: counters.updates)
        now = time.perf_counter()
        recording.write(tree)
        store.insert(tree)
        timings.timed("record", now)

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, scheduler, version)
        reason = complete(context.job, counters) or votes.stop
        if (votes.save or votes.judge) and not reason:
            recording.roll()
            scheduler.begin(_state(training, vector, replay=votes.save))
        timings.timed("send", now)
        scheduler.write()
        if reporter.due():
            reporter.report(counters.env_steps, figures(counters) | metrics | vector.figures())
        return reason

    reason = train(training, fill, settle)
    recording.close()
    reporter.report(counters.env_steps, figures(counters) | vector.figures())
    state, others = _state(training, vector, replay=True), _others(context, reporter, timings)
    if state is None:
        reporter.close()
        return
    scheduler.finish(state, reason)
    greedy, words = conclude(evaluation, reason, state, scheduler.write)
    finish(context, counters, reason, reporter, writer, timings, others + words, greedy)


def _state(training: Training, vector: Vector, replay: bool) -> StateDict | None:
    """A copy of all that a checkpoint holds, at rank 0, where every rank's columns are gathered; elsewhere None."""
    own: StateDict = {"sampler": vector.state(), "columns": training.learner.columns()}
    own["store"] = training.store.state() if replay else {}
    parts = [from_bytes(part) for part in training.context.ports.gather(to_bytes(own), training.context.plan.learners)]
    if not parts:
        return None
    whole = {"sampler": merged([part["sampler"] for part in parts])}
    whole["columns"] = joined_columns([part["columns"] for part in parts])
    whole["stores"] = [part["store"] for part in parts]
    return {**learner_state(training.learner), **whole}


def _others(context: RankContext, reporter: Reporter, timings: Timings) -> list[dict[str, Any]]:
    """Every other worker's time split and memory, at rank 0."""
    mine = np.array([*(timings.seconds[name] for name in ACTIVITIES), float(reporter.peak)])
    parts = context.ports.gather(mine.tobytes(), context.plan.learners)
    others = []
    for rank, part in list(enumerate(parts))[1:]:
        values = np.frombuffer(part)
        others.append({"rank": rank, "split_s": values[:-1].tolist(), "peak_rss_bytes": values[-1]})
    return others
