"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch.

Several learners keep one set of parameters: each learns from its own actors, gradients are summed, and what all learned
from is counted together, so that all of them stop and save at the same update.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.arriving import Arriving
from hpc_rl.replay.fresh import Fresh
from hpc_rl.runtime.checkpoints import (
    CheckpointScheduler,
    CheckpointWriter,
    Outcome,
    joined_columns,
    learner_state,
    restored,
)
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import complete, reason_to_stop
from hpc_rl.runtime.messages import TRAJECTORIES, ControlServer, FinalReport, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.training import Metrics, Training, settled, train
from hpc_rl.runtime.weights import WeightPublisher
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.layout import Layout


def learner(context: RankContext, serve: Callable[[], Callable[[], None]] | None = None) -> Outcome | None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save.

    ``serve`` starts the inference server of this process, if there is one, and returns what waits for its end.
    """
    job, plan, method, actors = context.job, context.plan, context.method, list(context.rank_spec.peers)
    link, waiting, group = context.ports.link, context.ports.waiting, context.make_group()
    columns = plan.learned_columns(context.rank_spec)
    learn, counters = restored(method, group, context.resume, job.environment.columns, columns)
    timings, free, count = Timings(), job.schedule == "free", plan.learning_columns // plan.fragment_columns
    inbox = _inbox(context, learn.policy, max(2, -(-2 * count // len(actors))))
    arriving, store = Arriving(inbox, count, in_turn=not free), Fresh(method.items)
    training = Training(method, learn, store, counters, timings)
    control = ControlServer(link, waiting, actors, inbox.watch)
    publisher = WeightPublisher(link, waiting, learn.weights, context.routes, serve is not None, every=not free)
    publisher.publish(training.clock)
    join = serve() if serve else lambda: None
    writer = CheckpointWriter(counters, context.files, job, context.about, context.limits)
    reporter = Reporter(context.files, timings, context.limits.started, counters.env_steps)
    evaluation = context.make_evaluation(learn.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, plan, group.rank == 0, control.order, waiting.lost)
    give_up = context.limits.requested if group.size == 1 else lambda: False

    def fill() -> str | None:
        now, reason = time.perf_counter(), None
        while reason is None and not arriving.receive(store, give_up):
            reason = reason_to_stop(job, counters, context.limits)
        timings.timed("wait", now)
        return reason

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, plan, context.limits, scheduler.due(), version)
        arriving.release()
        now = timings.timed("learn", now)
        publisher.publish(training.clock)
        timings.timed("send", now)
        if reporter.due():
            reporter.report(counters.env_steps, counters.figures() | metrics)
        np.maximum(scheduler.closed, votes.closed, out=scheduler.closed)
        if votes.save or votes.judge:
            scheduler.begin(lambda: _state(context, training))
        scheduler.write()
        return complete(job, counters) or votes.stop

    reason = train(training, fill, settle)
    control.order(scheduler.rolls + 1, stop=True)
    reports = control.final_reports(inbox)
    join()
    others = _gathered(context, reports)
    publisher.close()
    reporter.report(counters.env_steps, counters.figures())
    state = _state(context, training)
    reporter.close()
    if state is None:
        return None
    scheduler.finish(state, reason)
    report = FinalReport.of(context.rank_spec.rank, timings, reporter.peak)
    return Outcome(reason, state, counters, scheduler, report, others)


def _inbox(context: RankContext, policy: Policy, credits: int) -> Inbox:
    """Receives the fragments of this learner's actors."""
    plan, spec, ports = context.plan, context.method.spec, context.ports
    layout = Layout(schemas(policy, spec)[1], plan.steps, plan.fragment_columns, spec.stack)
    return Inbox(ports.link, context.rank_spec.peers, TRAJECTORIES, layout, ports.waiting, credits)


def _gathered(context: RankContext, reports: list[FinalReport]) -> list[FinalReport]:
    """The final reports that all learners received, on the first; elsewhere none."""
    texts = context.ports.gather(json.dumps([vars(report) for report in reports]).encode(), context.plan.learners)
    return [FinalReport(**report) for text in texts for report in json.loads(text)]


def _state(context: RankContext, training: Training) -> StateDict | None:
    """What a checkpoint holds of all learners, on the first; every learner sends the rows that only it has."""
    parts = context.gather(training.learner.columns(), context.plan.learners)
    return {**learner_state(training.learner), "columns": joined_columns(parts)} if parts else None
