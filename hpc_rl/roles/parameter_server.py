"""The parameter server: takes gradients as they come, steps the optimiser, answers. Blocks only for the next one.

Server 0 also counts what workers collected, saves, and decides when to stop. Where there are more (Gorila, Nair et al.
2015, arXiv 1507.04296), each keeps a slice of the parameters with its part of the optimiser's statistics.
"""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from hpc_rl.algorithms.base import Learner
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoints import CheckpointScheduler, CheckpointWriter, Outcome, restored
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters, reason_to_stop
from hpc_rl.runtime.messages import REPORTS, ControlClient, ControlServer, FinalReport, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.shards import ParameterShard, ShardServer, concatenate_shards
from hpc_rl.runtime.worker_numbers import WorkerNumbers, report_schema
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import shard_slices
from hpc_rl.transport.waiting import Done, Stopped, Waiting


def parameter_server(context: RankContext) -> Outcome | None:
    """Serve until the budget, the target or a signal says stop."""
    rank_spec, job = context.rank_spec, context.job
    learn, counters = restored(context.method, Alone(), context.resume, job.environment.columns, [])
    servers = context.plan.of("parameter_server")
    part = shard_slices(learn.weights.data.numel(), len(servers))[rank_spec.index]
    shard = ParameterShard(learn, part, job.resources.quorum, counters.updates)
    server = ShardServer(context.ports.link, context.ports.waiting, rank_spec.peers, shard)
    server.open(counters.env_steps)
    if rank_spec.index == 0:
        return _chief(context, learn, server, counters, servers)
    _other(context, server, servers)
    return None


def _chief(
    context: RankContext, learn: Learner, server: ShardServer, counters: Counters, servers: list[int]
) -> Outcome:
    link, waiting, plan, job = context.ports.link, context.ports.waiting, context.plan, context.job
    workers, shard, timings = list(context.rank_spec.peers), server.shard, Timings()
    worker_numbers = WorkerNumbers(learn, context.resume, job.environment.columns)
    schema = report_schema(schemas(learn.policy, context.method.spec)[1], len(worker_numbers.names))
    reports = Inbox(link, workers, REPORTS, Layout(schema, plan.steps, plan.fragment_columns), waiting)
    control = ControlServer(link, waiting, workers, server.gradients.watch)
    others = ControlServer(link, waiting, servers[1:])
    writer = CheckpointWriter(counters, context.files, job, context.about, context.limits)
    reporter = Reporter(context.files, timings, context.limits.started, counters.env_steps)
    evaluation = context.make_evaluation(learn.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, plan, True, control.order)

    def state(stop: bool = False) -> StateDict:
        others.order(scheduler.rolls + (not stop), stop=stop)  # a stopping server sends its final state unasked
        parts = context.gather(shard.state(), servers)
        replays = context.saved_stores(scheduler.rolls + 1) if stop or scheduler.needs.save else []
        return concatenate_shards(learn, parts) | {"columns": {}, "workers": worker_numbers.state(), "stores": replays}

    reason = None
    while reason is None:
        now = _serve(waiting, server, timings, context.limits.requested, reports)
        while (report := reports.poll()) is not None:
            counters.add(report.tree, shard.version)
            worker_numbers.note(report.tree)
            np.maximum.at(scheduler.closed, report.tree["column"], report.tree["closed"])
            reports.release(report)
            server.env_steps = counters.env_steps
        counters.updates = shard.version
        counters.mark_steady(context.limits.started)
        due = scheduler.due()
        if due.save or due.judge:
            scheduler.begin(state)
        scheduler.write()
        counters.reached = evaluation.reached
        if reporter.due():
            reporter.report(counters.env_steps, counters.figures() | shard.figures())
        reason = reason_to_stop(job, counters, context.limits)
        timings.timed("learn", now)
    control.order(scheduler.rolls + 1, stop=True, save=True)
    last = control.final_reports(server.gradients, reports)
    final = state(stop=True)
    scheduler.finish(final, reason)
    reporter.report(counters.env_steps, counters.figures() | shard.figures())
    reporter.close()
    own = FinalReport.of(context.rank_spec.rank, timings, reporter.peak)
    return Outcome(reason, final, counters, scheduler, own, last)


def _other(context: RankContext, server: ShardServer, servers: list[int]) -> None:
    timings, control = Timings(), ControlClient(context.ports.link, context.ports.waiting, servers[0])
    reporter = Reporter(context.files, timings, context.limits.started)
    while not control.stopping():
        now = _serve(context.ports.waiting, server, timings, control.called)
        if control.due():
            context.gather(server.shard.state(), servers)
        if reporter.due():
            reporter.report(0, server.shard.figures())
        timings.timed("learn", now)
    context.gather(server.shard.state(), servers)
    reporter.close()


def _serve(waiting: Waiting, server: ShardServer, timings: Timings, give_up: Done, *more: Inbox) -> float:
    """Wait for a gradient, or a message of ``more``; take every gradient that is here. Returns when that began."""
    begin, boxes, workers = time.perf_counter(), (server.gradients, *more), server.gradients.peers
    with suppress(Stopped):
        waiting.until(lambda: any(x.ready() for x in boxes), lambda: f"gradients of {waiting.who(workers)}", give_up)
    now = timings.timed("wait", begin)
    while (message := server.gradients.poll()) is not None:
        server.serve(message)
    server.gradients.check_peers()
    return now
