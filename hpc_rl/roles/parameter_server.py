"""The parameter server: takes gradients as they come, steps the optimiser, answers. Blocks only for the next one.

Server 0 also books what workers collected, saves, and decides when to stop. Where there are more (Gorila, Nair et al.
2015, arXiv 1507.04296), each keeps a slice of the parameters with its part of the optimiser's statistics.
"""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from hpc_rl.algorithms.base import Learner
from hpc_rl.optim.flat import StateDict
from hpc_rl.optim.group import Alone
from hpc_rl.runtime.checkpoint_scheduler import CheckpointScheduler
from hpc_rl.runtime.checkpoint_writer import CheckpointWriter
from hpc_rl.runtime.conclusion import conclude
from hpc_rl.runtime.context import RankContext, schemas
from hpc_rl.runtime.control import ControlClient, ControlServer
from hpc_rl.runtime.counters import Counters, reason_to_stop
from hpc_rl.runtime.evaluation import Evaluation
from hpc_rl.runtime.messages import REPORTS, report_schema
from hpc_rl.runtime.reporter import Reporter, figures
from hpc_rl.runtime.shards import ParameterShard, ShardServer, concatenate_shards
from hpc_rl.runtime.summary import finish, steady
from hpc_rl.runtime.training import restored
from hpc_rl.runtime.worker_numbers import WorkerNumbers
from hpc_rl.samplers.base import Timings
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import shard_slices
from hpc_rl.transport.waiting import Done, Stopped


def parameter_server(context: RankContext) -> None:
    """Serve until the budget, the target or a signal says stop."""
    learn, counters = restored(context, Alone(), [])
    servers = context.plan.of("parameter_server")
    part = shard_slices(learn.weights.data.numel(), len(servers))[context.rank_spec.index]
    share = ParameterShard(learn, part, context.job.resources.quorum, counters.updates)
    desk = ShardServer(context, share)
    desk.open(counters.env_steps)
    (_chief if context.rank_spec.index == 0 else _other)(context, learn, desk, counters, servers)


def _chief(context: RankContext, learn: Learner, desk: ShardServer, counters: Counters, servers: list[int]) -> None:
    workers, share, timings = list(context.rank_spec.peers), desk.share, Timings()
    _, sent = schemas(learn.policy, context.spec)
    ledger = WorkerNumbers(context, learn)
    layout = Layout(report_schema(sent, len(ledger.names)), context.plan.steps, context.plan.fragment_columns)
    reports = Inbox(context.ports.link, workers, REPORTS, layout, context.ports.waiting)
    command, others = ControlServer(context, workers), ControlServer(context, servers[1:])
    writer, reporter = CheckpointWriter(context, counters), Reporter(context, timings, counters.env_steps)
    evaluation = Evaluation(context, learn.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, command.order)

    def state(stop: bool = False) -> StateDict:
        others.order(scheduler.rolls + (not stop), stop)  # who leaves reports by itself
        parts = [from_bytes(part) for part in context.ports.gather(to_bytes(share.state()), servers)]
        return {**concatenate_shards(learn, parts), "columns": {}, "workers": ledger.state()}

    reason = None
    while reason is None:
        now = _serve(context, desk, timings, context.stop, reports)
        while (report := reports.poll()) is not None:
            counters.add(report.tree, share.version)
            ledger.note(report.tree)
            np.maximum.at(scheduler.closed, report.tree["column"], report.tree["closed"])
            reports.release(report)
            desk.env_steps = counters.env_steps
        counters.updates = share.version
        steady(counters, context.started)
        wanted = scheduler.wanted()
        if wanted.save or wanted.judge:
            scheduler.begin(state())
        scheduler.write()
        counters.reached = evaluation.reached
        if reporter.due():
            reporter.report(counters.env_steps, figures(counters) | share.figures())
        reason = reason_to_stop(context, counters)
        timings.timed("learn", now)
    command.order(scheduler.rolls + 1, stop=True)
    last = command.final_reports(desk.gradients, reports)
    final = state(stop=True)
    scheduler.finish(final, reason)
    reporter.report(counters.env_steps, figures(counters) | share.figures())
    greedy, words = conclude(evaluation, reason, final, scheduler.write)
    finish(context, counters, reason, reporter, writer, timings, last + words, greedy)


def _other(context: RankContext, learn: Learner, desk: ShardServer, counters: Counters, servers: list[int]) -> None:
    timings = Timings()
    orders, reporter = ControlClient(context, servers[0]), Reporter(context, timings)
    while not orders.stopping():
        now = _serve(context, desk, timings, orders.called)
        if orders.due():
            context.ports.gather(to_bytes(desk.share.state()), servers)
        if reporter.due():
            reporter.report(0, desk.share.figures())
        timings.timed("learn", now)
    context.ports.gather(to_bytes(desk.share.state()), servers)
    reporter.close()


def _serve(context: RankContext, desk: ShardServer, timings: Timings, give_up: Done, *more: Inbox) -> float:
    """Wait for a gradient, or a message of ``more``; take every gradient that is here. Returns when that began."""
    begin = time.perf_counter()
    boxes, waiting, peers = (desk.gradients, *more), context.ports.waiting, context.rank_spec.peers
    with suppress(Stopped):
        waiting.until(lambda: any(box.ready() for box in boxes), lambda: f"gradients of {waiting.who(peers)}", give_up)
    now = timings.timed("wait", begin)
    while (message := desk.gradients.poll()) is not None:
        desk.serve(message)
    desk.gradients.check_peers()
    return now
