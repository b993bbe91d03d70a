"""The actor: fills fragments with the newest weights it can see, and sends every one to its learner.

Its columns are its own, or those of the environment ranks that it serves. An inference server in a learner's process is
an actor, too: a thread whose learner is its own rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import flatten
from hpc_rl.roles.base import Seat, central, sampler, schemas
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Orders
from hpc_rl.roles.records import Records
from hpc_rl.roles.relay import Relay
from hpc_rl.roles.reporter import Reporter
from hpc_rl.roles.schedule import exploration
from hpc_rl.samplers.base import Sampler, Split
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped
from hpc_rl.types import Clock, Schema


def actor(seat: Seat) -> None:
    """Act until the learner says stop. Blocks only on a credit of its learner, and on its environments."""
    link, waiting, plan = seat.ports.link, seat.ports.waiting, seat.plan
    learner, policy = seat.place.peers[0], seat.make_policy()
    recorded, sent = schemas(policy, seat.spec)
    layout = Layout(sent, plan.steps, plan.fragment_columns, seat.spec.stack)
    outbox = Outbox(link, learner, TRAJECTORIES, layout, waiting)
    relay = Relay(seat, flatten(policy.net))
    split = Split()

    def pulse() -> None:
        relay.work()
        outbox.ready()  # lets a large message move on while this rank steps

    orders = Orders(seat, learner, pulse)
    waiting.until(lambda: relay.newest().version >= 0 or orders.stopping(), "the first weights")
    pull = _weights(seat, relay, outbox, orders)
    made, record = _made(seat, policy, recorded, split, pulse)

    def weights() -> int:
        clock = pull()
        made.explore(exploration(seat, made.columns, clock.env_steps, clock.version))
        return clock.version

    reporter = Reporter(seat, split, int(made.steps.sum()))
    try:
        while not orders.stopping():
            tree = outbox.lend()
            made.collect(tree, weights)
            now = time.perf_counter()
            record.note(tree, roll=orders.due())
            now = split.timed("record", now)
            outbox.wait(give_up=orders.stopping)
            now = split.timed("wait", now)
            outbox.put(tree, relay.clock.version)
            split.timed("send", now)
            if reporter.due():
                more = {"torn_reads": float(relay.weights.torn), **made.figures()}
                reporter.report(int(made.steps.sum()), more)
    except Stopped:
        pass
    record.close()
    outbox.flush()
    reporter.report(int(made.steps.sum()), {"recorded_bytes": float(record.bytes_written), **made.figures()})
    if seat.job.sampler == "central":
        made.close()  # the ranks that it serves may leave
    orders.last_word(split, reporter)
    reporter.close()
    relay.close()


def _made(
    seat: Seat, policy: Policy, recorded: Schema, split: Split, pulse: Callable[[], None]
) -> tuple[Sampler, Records]:
    """The sampler of the job, and a writer for all columns or for each of its lanes."""
    if seat.job.sampler != "central":
        own = sampler(seat, policy, split, pulse, seat.place.threads)
        return own, Records(seat, recorded, [own.columns], [seat.place.name])
    served = central(seat, policy, recorded, split, pulse)
    names = [seat.plan.ranks[remote.peer].name for remote in served.remotes]
    return served, Records(seat, recorded, [lane.columns for lane in served.lanes], names)


def _weights(seat: Seat, relay: Relay, outbox: Outbox, orders: Orders) -> Callable[[], Clock]:
    """What puts weights in place: the newest, or in a deterministic schedule those before the last update."""
    begin = relay.clock.version

    def in_turn() -> Clock:
        wanted = begin + max(0, outbox.sent - 1)  # fragment k is made by the weights before update k - 1
        what = f"version {wanted} of the weights"
        seat.ports.waiting.until(lambda: relay.newest(wanted).version == wanted, what, orders.stopping)
        return relay.clock

    return relay.newest if seat.job.schedule == "free" else in_turn
