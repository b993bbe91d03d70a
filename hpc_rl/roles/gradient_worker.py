"""The worker of asynchronous training: steps its columns, pushes gradients, goes on with newer parameters."""

from __future__ import annotations

import time
from contextlib import suppress

from hpc_rl.fragments import allocate
from hpc_rl.optim.flat import count_trainable, flatten
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.messages import REPORTS, ControlClient, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.training import Metrics, Training, train
from hpc_rl.runtime.worker_numbers import numbers, report_schema, restore, rows
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.parameters import ParameterClient
from hpc_rl.transport.waiting import Stopped


def gradient_worker(context: RankContext) -> None:
    """Collect, learn through the servers, report, until server 0 says stop. Blocks on its servers' answers."""
    link, waiting, job, plan = context.ports.link, context.ports.waiting, context.job, context.plan
    servers, method, policy = list(context.rank_spec.peers), context.method, context.method.make_policy()
    control, length = ControlClient(link, waiting, servers[0]), count_trainable(policy.net)
    client = ParameterClient(context.ports, servers, length, job.resources.quorum, control.stopping)
    with suppress(Stopped):  # then the loop below ends at once
        client.pull(flatten(policy.net).data)
    learner = method.make_learner(policy, client)  # its target networks begin with what the servers have
    restore(learner, context.resume, context.rank_spec.columns[0])
    count = len(numbers(learner))
    recorded, sent = schemas(policy, method.spec)
    timings, counters = Timings(), Counters(job.environment.columns)
    sampling = context.make_sampling(policy, timings, lambda: None)
    sampler, recording = sampling.sampler, sampling.recording
    reporter = Reporter(context.files, timings, context.limits.started, int(sampler.steps.sum()))
    layout = Layout(report_schema(sent, count), plan.steps, plan.fragment_columns)
    reports = Outbox(link, servers[0], REPORTS, layout, waiting)
    tree = allocate(sent, plan.steps, plan.fragment_columns, method.spec.stack)
    store = context.make_store(recorded)

    def fill() -> str | None:
        if control.stopping():
            return "stopped"
        counters.env_steps, counters.updates = client.env_steps, client.version
        sampler.explore(method.exploration(sampler.columns, counters.env_steps, counters.updates))
        sampler.collect(tree, lambda: client.version)
        now = time.perf_counter()
        recording.write_and_mark(tree, roll=control.due())
        store.insert(tree)
        context.save_store(store, control.save)
        timings.timed("record", now)
        return None

    def settle(metrics: Metrics, version: int) -> None:
        now = time.perf_counter()
        store.release()
        report = tree | ({"kept": rows(learner, plan.fragment_columns)} if count else {})
        reports.put(report, client.version, control.stopping)
        timings.timed("send", now)
        if reporter.due():
            reporter.report(int(sampler.steps.sum()), metrics | sampler.figures() | store.figures())

    with suppress(Stopped):
        train(Training(method, learner, store, counters, timings), fill, settle)
    client.flush()
    reports.flush()
    recording.close()
    context.save_store(store, control.save)
    more = {"recorded_bytes": float(recording.bytes_written), **sampler.figures()}
    reporter.report(int(sampler.steps.sum()), more)
    control.send_final_report(timings, reporter.peak)
    context.flush_replay()
    reporter.close()
