"""The worker of asynchronous training: steps its columns, pushes gradients, goes on with newer parameters."""

from __future__ import annotations

import time

from hpc_rl.fragments import allocate
from hpc_rl.runtime.context import RankContext, make_sampler, schemas
from hpc_rl.runtime.control import ControlClient
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.messages import REPORTS, report_schema
from hpc_rl.runtime.recording import Recording
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.schedule import exploration
from hpc_rl.runtime.stores import store_of
from hpc_rl.runtime.training import Metrics, Training, train
from hpc_rl.runtime.worker_numbers import numbers, restore, rows
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import ParameterClient
from hpc_rl.transport.waiting import Stopped


def gradient_worker(context: RankContext) -> None:
    """Collect, learn through the servers, report, until server 0 says stop. Blocks on its servers' answers."""
    servers, plan, policy = list(context.rank_spec.peers), context.plan, context.make_policy()
    orders = ControlClient(context, servers[0])
    length = sum(p.numel() for p in policy.net.parameters() if p.requires_grad)
    client = ParameterClient(context.ports, servers, length, context.job.resources.quorum, orders.stopping)
    learner = context.algorithm.learner(context.config, context.spec, policy, client)
    restore(context, learner)
    kept = len(numbers(learner))
    recorded, sent = schemas(policy, context.spec)
    timings, counters = Timings(), Counters(context.job.environment.columns)
    vector = make_sampler(context, policy, timings, lambda: None, max(1, context.rank_spec.threads))
    recording = Recording(context, recorded, [vector.columns], [context.rank_spec.name])
    reporter = Reporter(context, timings, int(vector.steps.sum()))
    layout = Layout(report_schema(sent, kept), plan.steps, plan.fragment_columns)
    reports = Outbox(context.ports.link, servers[0], REPORTS, layout, context.ports.waiting)
    tree = allocate(sent, plan.steps, plan.fragment_columns, context.spec.stack)
    store = store_of(context, recorded, client)

    def fill() -> str | None:
        if orders.stopping():
            return "stopped"
        counters.env_steps, counters.updates = client.env_steps, client.version
        vector.explore(exploration(context, vector.columns, counters.env_steps, counters.updates))
        vector.collect(tree, lambda: client.version)
        now = time.perf_counter()
        recording.write_and_mark(tree, roll=orders.due())
        store.insert(tree)
        timings.timed("record", now)
        return None

    def settle(metrics: Metrics, version: int) -> None:
        now = time.perf_counter()
        store.release()
        report = tree | ({"kept": rows(learner, plan.fragment_columns)} if kept else {})
        reports.put(report, client.version, orders.stopping)
        timings.timed("send", now)
        if reporter.due():
            reporter.report(int(vector.steps.sum()), metrics | vector.figures())

    try:
        client.pull(learner.weights.data)
        train(Training(context, learner, store, counters, timings), fill, settle)
    except Stopped:
        pass
    client.flush()
    reports.flush()
    recording.close()
    more = {"recorded_bytes": float(recording.bytes_written), **vector.figures()}
    reporter.report(int(vector.steps.sum()), more)
    orders.send_final_report(timings, reporter)
    reporter.close()
