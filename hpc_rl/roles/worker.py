"""The worker of synchronous training: steps its columns, joins every reduction, leaves at the same update as all."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.fragments import allocate
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoints import (
    CheckpointScheduler,
    CheckpointWriter,
    Outcome,
    joined_columns,
    learner_state,
    restored,
)
from hpc_rl.runtime.context import RankContext, Sampling
from hpc_rl.runtime.counters import complete
from hpc_rl.runtime.messages import FinalReport, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.training import Metrics, Training, settled, train
from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.columns import merged


def worker(context: RankContext) -> Outcome | None:
    """Collect, update, record, until all ranks agree to stop. One rank of ``allreduce``, or all of ``solo``."""
    job, plan, columns, method = context.job, context.plan, context.rank_spec.columns, context.method
    group, timings = context.make_group(), Timings()
    learner, counters = restored(method, group, context.resume, job.environment.columns, columns)
    recorded = schemas(learner.policy, method.spec)[0]
    sampling = context.make_sampling(learner.policy, timings, lambda: None)
    sampler, recording = sampling.sampler, sampling.recording
    store = context.make_store(recorded)
    training = Training(method, learner, store, counters, timings)
    writer = CheckpointWriter(counters, context.files, job, context.about, context.limits)
    reporter = Reporter(context.files, timings, context.limits.started, counters.env_steps)
    evaluation = context.make_evaluation(learner.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, plan, context.rank_spec.rank == 0)
    tree = allocate(recorded, plan.steps, len(columns), method.spec.stack)

    def fill() -> None:
        sampler.explore(method.exploration(sampler.columns, counters.env_steps, counters.updates))
        sampler.collect(tree, lambda: counters.updates)
        now = time.perf_counter()
        recording.write(tree)
        store.insert(tree)
        timings.timed("record", now)

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, plan, context.limits, scheduler.due(), version)
        reason = complete(job, counters) or votes.stop
        if (votes.save or votes.judge) and not reason:
            recording.roll()
            scheduler.begin(lambda: _state(context, training, sampling, replay=votes.save))
        timings.timed("send", now)
        scheduler.write()
        if reporter.due():
            reporter.report(counters.env_steps, counters.figures() | metrics | sampler.figures() | store.figures())
        return reason

    reason = train(training, fill, settle)
    recording.close()
    reporter.report(counters.env_steps, counters.figures() | sampler.figures())
    reporter.close()
    state = _state(context, training, sampling, replay=True)
    reports = _reports(context, timings, reporter.peak)
    context.flush_replay()
    if state is None:
        return None
    scheduler.finish(state, reason)
    return Outcome(reason, state, counters, scheduler, reports[0], reports[1:])


def _state(context: RankContext, training: Training, sampling: Sampling, replay: bool) -> StateDict | None:
    """A copy of all that a checkpoint holds, at rank 0, where every rank's columns are gathered; elsewhere None."""
    part_of_rank: StateDict = {"sampler": sampling.state(), "columns": training.learner.columns()}
    part_of_rank["store"] = training.store.state() if replay else {}
    parts = context.gather(part_of_rank, context.plan.learners)
    if not parts:
        return None
    state = {"sampler": merged([part["sampler"] for part in parts if part["sampler"]])}
    state["columns"] = joined_columns([part["columns"] for part in parts])
    state["stores"] = [part["store"] for part in parts]
    return {**learner_state(training.learner), **state}


def _reports(context: RankContext, timings: Timings, peak_rss_bytes: int) -> list[FinalReport]:
    """Every worker's final report, at rank 0; elsewhere none."""
    report = FinalReport.of(context.rank_spec.rank, timings, peak_rss_bytes)
    figures = np.array([*report.split_s, report.peak_rss_bytes, report.cpu_s])
    parts = context.ports.gather(figures.tobytes(), context.plan.learners)
    tables = [np.frombuffer(part) for part in parts]
    ranks = context.plan.learners
    return [FinalReport(r, x[:-2].tolist(), int(x[-2]), float(x[-1])) for r, x in zip(ranks, tables, strict=False)]
