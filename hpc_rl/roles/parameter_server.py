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
from hpc_rl.roles.base import Seat, schemas
from hpc_rl.roles.conclusion import conclude
from hpc_rl.roles.evaluation import Evaluation
from hpc_rl.roles.kept import Ledger
from hpc_rl.roles.messages import REPORTS, report_schema
from hpc_rl.roles.orders import Command, Orders
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver
from hpc_rl.roles.snapshots import Snapshots
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.training import restored
from hpc_rl.runtime.share import Desk, Share, joined
from hpc_rl.runtime.tally import Tally, reason_to_stop
from hpc_rl.samplers.base import Split
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import shares
from hpc_rl.transport.waiting import Done, Stopped


def parameter_server(seat: Seat) -> None:
    """Serve until the budget, the target or a signal says stop."""
    learn, tally = restored(seat, Alone(), [])
    servers = seat.plan.of("parameter_server")
    part = shares(learn.weights.data.numel(), len(servers))[seat.place.index]
    share = Share(learn, part, seat.job.resources.quorum, tally.updates)
    desk = Desk(seat, share)
    desk.open(tally.env_steps)
    (_chief if seat.place.index == 0 else _other)(seat, learn, desk, tally, servers)


def _chief(seat: Seat, learn: Learner, desk: Desk, tally: Tally, servers: list[int]) -> None:
    workers, share, split = list(seat.place.peers), desk.share, Split()
    _, sent = schemas(learn.policy, seat.spec)
    ledger = Ledger(seat, learn)
    layout = Layout(report_schema(sent, len(ledger.names)), seat.plan.steps, seat.plan.fragment_columns)
    reports = Inbox(seat.ports.link, workers, REPORTS, layout, seat.ports.waiting)
    command, others = Command(seat, workers), Command(seat, servers[1:])
    saver, reporter = Saver(seat, tally), Reporter(seat, split, tally.env_steps)
    evaluation = Evaluation(seat, learn.policy, tally)
    snapshots = Snapshots(saver, evaluation, command.order)

    def state(stop: bool = False) -> StateDict:
        others.order(snapshots.rolls + (not stop), stop)  # who leaves reports by itself
        parts = seat.ports.gather(to_bytes(share.state()), servers)
        return {**joined(learn, [from_bytes(part) for part in parts]), "columns": {}, "workers": ledger.state()}

    reason = None
    while reason is None:
        now = _serve(seat, desk, split, seat.stop, reports)
        while (report := reports.poll()) is not None:
            tally.add(report.tree, share.version)
            ledger.note(report.tree)
            np.maximum.at(snapshots.closed, report.tree["column"], report.tree["closed"])
            reports.release(report)
            desk.env_steps = tally.env_steps
        tally.updates = share.version
        steady(tally, seat.started)
        wanted = snapshots.wanted()
        if wanted.save or wanted.judge:
            snapshots.begin(state())
        snapshots.write()
        tally.reached = evaluation.reached
        if reporter.due():
            reporter.report(tally.env_steps, figures(tally) | share.figures())
        reason = reason_to_stop(seat, tally)
        split.timed("learn", now)
    command.order(snapshots.rolls + 1, stop=True)
    last = command.last_words(desk.gradients, reports)
    final = state(stop=True)
    snapshots.finish(final, reason)
    reporter.report(tally.env_steps, figures(tally) | share.figures())
    greedy, words = conclude(evaluation, reason, final, snapshots.write)
    finish(seat, tally, reason, reporter, saver, split, last + words, greedy)


def _other(seat: Seat, learn: Learner, desk: Desk, tally: Tally, servers: list[int]) -> None:
    split = Split()
    orders, reporter = Orders(seat, servers[0]), Reporter(seat, split)
    while not orders.stopping():
        now = _serve(seat, desk, split, orders.called)
        if orders.due():
            seat.ports.gather(to_bytes(desk.share.state()), servers)
        if reporter.due():
            reporter.report(0, desk.share.figures())
        split.timed("learn", now)
    seat.ports.gather(to_bytes(desk.share.state()), servers)
    reporter.close()


def _serve(seat: Seat, desk: Desk, split: Split, give_up: Done, *more: Inbox) -> float:
    """Wait for a gradient, or a message of ``more``; take every gradient that is here. Returns when that began."""
    begin = time.perf_counter()
    boxes, waiting = (desk.gradients, *more), seat.ports.waiting
    with suppress(Stopped):
        waiting.until(
            lambda: any(box.ready() for box in boxes), lambda: f"gradients of {waiting.who(seat.place.peers)}", give_up
        )
    now = split.timed("wait", begin)
    while (message := desk.gradients.poll()) is not None:
        desk.serve(message)
    desk.gradients.miss()
    return now
