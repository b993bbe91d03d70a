"""The worker of asynchronous training: steps its columns, pushes gradients, goes on with newer parameters."""

from __future__ import annotations

import time

from hpc_rl.fragments import allocate, trajectory
from hpc_rl.roles.base import Seat, sampler, schemas
from hpc_rl.roles.kept import numbers, rows, take_up
from hpc_rl.roles.messages import REPORTS, report_schema
from hpc_rl.roles.orders import Orders
from hpc_rl.roles.records import Records
from hpc_rl.roles.reporter import Reporter
from hpc_rl.roles.tally import Tally
from hpc_rl.roles.update import update as updated
from hpc_rl.samplers.base import Split
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import ParameterClient
from hpc_rl.transport.waiting import Stopped


def gradient_worker(seat: Seat) -> None:
    """Collect, learn through the servers, report, until server 0 says stop. Blocks on its servers' answers."""
    servers, plan, policy = list(seat.place.peers), seat.plan, seat.make_policy()
    orders = Orders(seat, servers[0])
    length = sum(p.numel() for p in policy.net.parameters() if p.requires_grad)
    client = ParameterClient(seat.ports, servers, length, seat.job.resources.quorum, orders.stopping)
    learn = seat.algorithm.learner(seat.config, seat.spec, policy, client)
    take_up(seat, learn)
    kept = len(numbers(learn))
    recorded, sent = schemas(policy, seat.spec)
    split, tally = Split(), Tally()
    vector = sampler(seat, policy, split, lambda: None, max(1, seat.place.threads))
    record = Records(seat, recorded, [vector.columns], [seat.place.name])
    reporter = Reporter(seat, split, int(vector.steps.sum()))
    layout = Layout(report_schema(sent, kept), plan.steps, plan.fragment_columns)
    reports = Outbox(seat.ports.link, servers[0], REPORTS, layout, seat.ports.waiting)
    tree = allocate(sent, plan.steps, plan.fragment_columns, seat.spec.stack)
    try:
        client.pull(learn.flat.parameter.data)
        while not orders.stopping():
            vector.collect(tree, lambda: client.version)
            now = time.perf_counter()
            record.note(tree, roll=orders.due())
            now = split.timed("record", now)
            tally.env_steps = client.env_steps
            update = updated(seat, learn, trajectory([tree], seat.spec, seat.device), tally)
            tally.updates += 1
            now = split.timed("learn", now)
            tree |= {"kept": rows(learn, plan.fragment_columns)} if kept else {}
            reports.put(tree, client.version, orders.stopping)
            split.timed("send", now)
            if reporter.due():
                reporter.report(int(vector.steps.sum()), update.metrics | vector.figures())
    except Stopped:
        pass
    client.flush()
    reports.flush()
    record.close()
    more = {"recorded_bytes": float(record.bytes_written), **vector.figures()}
    reporter.report(int(vector.steps.sum()), more)
    orders.last_word(split, reporter)
    reporter.close()
