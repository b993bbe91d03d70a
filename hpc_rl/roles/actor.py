"""The actor: fills fragments with the newest weights it can see, and sends every one to its learner.

Its columns are its own, or those of the environment ranks that it serves. An inference server in a learner's process is
an actor, too: a thread whose learner is its own rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.context import RankContext, make_central_sampler, make_sampler, schemas
from hpc_rl.runtime.control import ControlClient
from hpc_rl.runtime.messages import TRAJECTORIES
from hpc_rl.runtime.recording import Recording
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.runtime.schedule import exploration
from hpc_rl.runtime.weights import WeightSubscriber
from hpc_rl.samplers.base import Sampler, Timings
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped
from hpc_rl.types import Clock, Schema


def actor(context: RankContext) -> None:
    """Act until the learner says stop. Blocks only on a credit of its learner, and on its environments."""
    link, waiting, plan = context.ports.link, context.ports.waiting, context.plan
    learner, policy = context.rank_spec.peers[0], context.make_policy()
    recorded, sent = schemas(policy, context.spec)
    layout = Layout(sent, plan.steps, plan.fragment_columns, context.spec.stack)
    outbox = Outbox(link, learner, TRAJECTORIES, layout, waiting)
    subscriber = WeightSubscriber(context, flatten(policy.net))
    timings = Timings()

    def pulse() -> None:
        subscriber.work()
        outbox.ready()  # lets a large message move on while this rank steps

    orders = ControlClient(context, learner, pulse)
    waiting.until(lambda: subscriber.pull().version >= 0 or orders.stopping(), "the first weights")
    pull = _weights(context, subscriber, outbox, orders)
    sampler, recording = _sampler(context, policy, recorded, timings, pulse)

    def weights() -> int:
        clock = pull()
        sampler.explore(exploration(context, sampler.columns, clock.env_steps, clock.version))
        return clock.version

    reporter = Reporter(context, timings, int(sampler.steps.sum()))
    try:
        while not orders.stopping():
            tree = outbox.reserve()
            sampler.collect(tree, weights)
            now = time.perf_counter()
            recording.write_and_mark(tree, roll=orders.due())
            now = timings.timed("record", now)
            outbox.wait(give_up=orders.stopping)
            now = timings.timed("wait", now)
            outbox.put(tree, subscriber.clock.version)
            timings.timed("send", now)
            if reporter.due():
                more = {"torn_reads": float(subscriber.weights.torn), **sampler.figures()}
                reporter.report(int(sampler.steps.sum()), more)
    except Stopped:
        pass
    recording.close()
    outbox.flush()
    reporter.report(int(sampler.steps.sum()), {"recorded_bytes": float(recording.bytes_written), **sampler.figures()})
    if context.job.sampler == "central":
        sampler.close()  # the ranks that it serves may leave
    orders.send_final_report(timings, reporter)
    reporter.close()
    subscriber.close()


def _sampler(
    context: RankContext, policy: Policy, recorded: Schema, timings: Timings, pulse: Callable[[], None]
) -> tuple[Sampler, Recording]:
    """The sampler of the job, and a writer for all columns or for each of its lanes."""
    if context.job.sampler != "central":
        own = make_sampler(context, policy, timings, pulse, context.rank_spec.threads)
        return own, Recording(context, recorded, [own.columns], [context.rank_spec.name])
    served = make_central_sampler(context, policy, recorded, timings, pulse)
    names = [context.plan.ranks[remote.peer].name for remote in served.remotes]
    return served, Recording(context, recorded, [lane.columns for lane in served.lanes], names)


def _weights(
    context: RankContext, subscriber: WeightSubscriber, outbox: Outbox, orders: ControlClient
) -> Callable[[], Clock]:
    """What puts weights in place: the newest, or in a deterministic schedule those before the last update."""
    begin = subscriber.clock.version

    def in_turn() -> Clock:
        version = begin + max(0, outbox.sent - 1)  # fragment k is made by the weights before update k - 1
        what = f"version {version} of the weights"
        context.ports.waiting.until(lambda: subscriber.pull(version).version == version, what, orders.stopping)
        return subscriber.clock

    return subscriber.pull if context.job.schedule == "free" else in_turn
