"""The actor: steps its columns with the newest weights it can see, and sends every fragment to its learner."""

from __future__ import annotations

import time

from hpc_rl.algorithms.base import flatten
from hpc_rl.roles.base import Seat, recorder, sampler, schemas
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Orders
from hpc_rl.roles.relay import Relay
from hpc_rl.roles.reporter import Reporter
from hpc_rl.samplers.base import Split
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped


def actor(seat: Seat) -> None:
    """Act until the learner says stop. Blocks only on a credit of its learner."""
    link, waiting, plan = seat.ports.link, seat.ports.waiting, seat.plan
    learner, policy = seat.place.peers[0], seat.make_policy()
    recorded, sent = schemas(policy, seat.spec)
    width = len(seat.place.columns)
    outbox = Outbox(link, learner, TRAJECTORIES, Layout(sent, plan.steps, width, seat.spec.stack), waiting)
    relay = Relay(seat, flatten(policy.net))
    split = Split()

    def pulse() -> None:
        relay.work()
        outbox.ready()  # lets a large message move on while this rank steps

    orders = Orders(seat, learner, pulse)
    record = recorder(seat, recorded)
    vector = sampler(seat, policy, split, pulse, seat.place.threads)
    reporter = Reporter(seat, split)
    began = int(vector.steps.sum())
    seat.ports.waiting.until(lambda: relay.newest() >= 0 or orders.stopping(), "the first weights")
    try:
        while not orders.stopping():
            tree = outbox.lend()
            vector.collect(tree, relay.newest)
            now = time.perf_counter()
            record.write(tree)
            if orders.due():
                record.roll()
            tree["closed"][:] = record.closed
            now = split.timed("record", now)
            outbox.wait(give_up=orders.stopping)
            now = split.timed("wait", now)
            outbox.put(tree, relay.version)
            split.timed("send", now)
            if reporter.due():
                reporter.report(int(vector.steps.sum()) - began, {"torn_reads": float(relay.weights.torn)})
    except Stopped:
        pass
    record.close()
    outbox.flush()
    reporter.report(int(vector.steps.sum()) - began, {"recorded_bytes": float(record.bytes_written)})
    orders.last_word(record, vector, outbox.sent, split, reporter)
    reporter.close()
    vector.close()
    relay.close()
