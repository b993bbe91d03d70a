"""The worker of asynchronous training: steps its columns, pushes gradients, goes on with newer parameters."""

from __future__ import annotations

import time

from hpc_rl.fragments import allocate
from hpc_rl.roles.base import Seat, sampler, schemas
from hpc_rl.roles.kept import numbers, rows, take_up
from hpc_rl.roles.messages import REPORTS, report_schema
from hpc_rl.roles.orders import Orders
from hpc_rl.roles.records import Records
from hpc_rl.roles.reporter import Reporter
from hpc_rl.roles.schedule import exploration
from hpc_rl.roles.stores import store_of
from hpc_rl.roles.training import Metrics, Training, train
from hpc_rl.runtime.tally import Tally
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
    learner = seat.algorithm.learner(seat.config, seat.spec, policy, client)
    take_up(seat, learner)
    kept = len(numbers(learner))
    recorded, sent = schemas(policy, seat.spec)
    split, tally = Split(), Tally(seat.job.environment.columns)
    vector = sampler(seat, policy, split, lambda: None, max(1, seat.place.threads))
    record = Records(seat, recorded, [vector.columns], [seat.place.name])
    reporter = Reporter(seat, split, int(vector.steps.sum()))
    layout = Layout(report_schema(sent, kept), plan.steps, plan.fragment_columns)
    reports = Outbox(seat.ports.link, servers[0], REPORTS, layout, seat.ports.waiting)
    tree = allocate(sent, plan.steps, plan.fragment_columns, seat.spec.stack)
    store = store_of(seat, recorded, client)

    def fill() -> str | None:
        if orders.stopping():
            return "stopped"
        tally.env_steps, tally.updates = client.env_steps, client.version
        vector.explore(exploration(seat, vector.columns, tally.env_steps, tally.updates))
        vector.collect(tree, lambda: client.version)
        now = time.perf_counter()
        record.note(tree, roll=orders.due())
        store.insert(tree)
        split.timed("record", now)
        return None

    def settle(metrics: Metrics, version: int) -> None:
        now = time.perf_counter()
        store.release()
        report = tree | ({"kept": rows(learner, plan.fragment_columns)} if kept else {})
        reports.put(report, client.version, orders.stopping)
        split.timed("send", now)
        if reporter.due():
            reporter.report(int(vector.steps.sum()), metrics | vector.figures())

    try:
        client.pull(learner.weights.data)
        train(Training(seat, learner, store, tally, split), fill, settle)
    except Stopped:
        pass
    client.flush()
    reports.flush()
    record.close()
    more = {"recorded_bytes": float(record.bytes_written), **vector.figures()}
    reporter.report(int(vector.steps.sum()), more)
    orders.last_word(split, reporter)
    reporter.close()
