"""The actor: fills fragments with the newest weights it can see, and sends every one to its learner or replay rank.

Its columns are its own, or those of the environment ranks that it serves. An inference server in a learner's process is
an actor, too: a thread whose learner is its own rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.messages import TRAJECTORIES, ControlClient, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.subscriber import WeightSubscriber
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped
from hpc_rl.types import Clock


def actor(context: RankContext) -> None:
    """Act until the learner says stop. Blocks only on a credit of who takes its fragments, and on its environments."""
    link, waiting, plan, method = context.ports.link, context.ports.waiting, context.plan, context.method
    taker, learner, policy = context.rank_spec.peers[0], context.rank_spec.peers[-1], method.make_policy()
    layout = Layout(schemas(policy, method.spec)[1], plan.steps, plan.fragment_columns, method.spec.stack)
    outbox = Outbox(link, taker, TRAJECTORIES, layout, waiting)
    subscriber = WeightSubscriber(link, waiting, flatten(policy.net), context.routes)
    timings = Timings()

    def pulse() -> None:
        subscriber.relay()
        outbox.ready()  # lets a large message move on while this rank steps

    control = ControlClient(link, waiting, learner, pulse)
    waiting.until(lambda: subscriber.pull().version >= 0 or control.stopping(), "the first weights")
    pull = _weights(context, subscriber, outbox, control)
    sampling = context.make_sampling(policy, timings, pulse)
    sampler, recording = sampling.sampler, sampling.recording

    def weights() -> int:
        clock = pull()
        sampler.explore(method.exploration(sampler.columns, clock.env_steps, clock.version))
        return clock.version

    reporter = Reporter(context.files, timings, context.limits.started, int(sampler.steps.sum()))
    try:
        while not control.stopping():
            tree = outbox.reserve()
            sampler.collect(tree, weights)
            now = time.perf_counter()
            recording.write_and_mark(tree, roll=control.due())
            now = timings.timed("record", now)
            outbox.wait(give_up=control.stopping)
            now = timings.timed("wait", now)
            outbox.put(tree, subscriber.clock.version)
            timings.timed("send", now)
            if reporter.due():
                more = {"torn_reads": float(subscriber.shared.torn), **sampler.figures()}
                reporter.report(int(sampler.steps.sum()), more)
    except Stopped:
        pass
    recording.close()
    outbox.flush()
    reporter.report(int(sampler.steps.sum()), {"recorded_bytes": float(recording.bytes_written), **sampler.figures()})
    if context.job.sampler == "central":
        sampler.close()  # the ranks that it serves may leave
    control.send_final_report(timings, reporter.peak)
    reporter.close()
    subscriber.close()


def _weights(
    context: RankContext, subscriber: WeightSubscriber, outbox: Outbox, control: ControlClient
) -> Callable[[], Clock]:
    """What puts weights in place: the newest, or in a deterministic schedule those that it says."""
    begin = subscriber.clock.version

    def in_turn() -> Clock:
        version = begin + context.updates_before(outbox.sent)
        awaited = f"version {version} of the weights"
        context.ports.waiting.until(lambda: subscriber.pull(version).version == version, awaited, control.stopping)
        return subscriber.clock

    return subscriber.pull if context.job.schedule == "free" else in_turn
