"""The learner whose replay lies on other ranks: updates on their batches, publishes weights, counts what arrives.

Several learners share every batch, sum their gradients, and count together; the first one counts for all. Actors and
replay ranks are told to stop by their learner, and by the first one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoints import (
    CheckpointScheduler,
    CheckpointWriter,
    Outcome,
    joined_columns,
    learner_state,
    restored,
)
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import complete
from hpc_rl.runtime.counting import count_arrivals
from hpc_rl.runtime.divergence import check_identical
from hpc_rl.runtime.messages import ControlServer, FinalReport, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.training import CHECK_EVERY, Metrics, Training, train
from hpc_rl.runtime.weights import WeightPublisher
from hpc_rl.samplers.base import Timings

ROUND_S = 0.2  # the longest wait for a batch between two looks at clocks, signals and what arrived


def replay_learner(context: RankContext, serve: Callable[[], Callable[[], None]] | None = None) -> Outcome | None:
    """Learn until the budget, the target or a signal says stop; then collect the other ranks and save.

    ``serve`` starts the inference server of this process, if there is one, and returns what waits for its end.
    """
    job, plan, method, servers = context.job, context.plan, context.method, context.plan.of("replay_server")
    link, waiting, group, timings = context.ports.link, context.ports.waiting, context.make_group(), Timings()
    own, free = plan.learned_columns(context.rank_spec), job.schedule == "free"
    learn, counters = restored(method, group, context.resume, job.environment.columns, own)
    remote = context.make_remote(schemas(learn.policy, method.spec)[1])
    training, store = Training(method, learn, remote.store, counters, timings), remote.store
    control = ControlServer(link, waiting, [r for r in context.rank_spec.peers if r not in servers])
    replays = ControlServer(link, waiting, servers if group.rank == 0 else [])
    publisher = WeightPublisher(link, waiting, learn.weights, context.routes, serve is not None, every=not free)
    publisher.publish(training.clock)
    join = serve() if serve else lambda: None
    writer = CheckpointWriter(counters, context.files, job, context.about, context.limits)
    reporter = Reporter(context.files, timings, context.limits.started, counters.env_steps)
    evaluation = context.make_evaluation(learn.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, plan, group.rank == 0, control.order, waiting.lost)
    remote.open(counters.updates)

    def fill() -> None:
        now = time.perf_counter()
        remote.receive(ROUND_S, lambda: group.size == 1 and context.limits.requested())
        timings.timed("wait", now)

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = count_arrivals(group, counters, store.arrivals(), context.limits, scheduler.due())
        store.release()
        counters.mark_steady(context.limits.started)
        if counters.updates // CHECK_EVERY > version // CHECK_EVERY:
            check_identical(learn)
        now = timings.timed("learn", now)
        publisher.publish(training.clock)
        timings.timed("send", now)
        if reporter.due():
            reporter.report(counters.env_steps, counters.figures() | metrics)
        np.maximum(scheduler.closed, votes.closed, out=scheduler.closed)
        if votes.save or votes.judge:
            scheduler.begin(lambda: _state(context, training, replays, scheduler.rolls + 1 if votes.save else 0))
        scheduler.write()
        return complete(job, counters) or votes.stop

    reason = train(training, fill, settle)
    control.order(scheduler.rolls + 1, stop=True)
    reports = control.final_reports()
    join()
    state = _state(context, training, replays, scheduler.rolls + 1, stop=True)
    others = _gathered(context, [*reports, *replays.final_reports()])
    publisher.close()
    reporter.report(counters.env_steps, counters.figures())
    reporter.close()
    if state is None:
        return None
    scheduler.finish(state, reason)
    own_report = FinalReport.of(context.rank_spec.rank, timings, reporter.peak)
    return Outcome(reason, state, counters, scheduler, own_report, others)


def _gathered(context: RankContext, reports: list[FinalReport]) -> list[FinalReport]:
    """The final reports that all learners received, on the first; elsewhere none."""
    texts = context.ports.gather(json.dumps([vars(report) for report in reports]).encode(), context.plan.learners)
    return [FinalReport(**report) for text in texts for report in json.loads(text)]


def _state(
    context: RankContext, training: Training, replays: ControlServer, roll: int, stop: bool = False
) -> StateDict | None:
    """What a checkpoint holds of all learners, and where ``roll`` > 0 of all replays; on the first, elsewhere None."""
    parts = context.gather(training.learner.columns(), context.plan.learners)
    if not parts:
        return None
    state = {**learner_state(training.learner), "columns": joined_columns(parts)}
    if roll:
        replays.order(roll, stop=stop)
        shards = context.gather({}, [context.rank_spec.rank, *replays.peers])[1:]
        state["stores"] = [store for shard in shards for store in shard["stores"]]
    return state
