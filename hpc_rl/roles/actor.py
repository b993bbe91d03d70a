"""The actor: fills fragments with the newest weights it can see, and sends every one to its learner.

Its columns are its own, or those of the environment ranks that it serves. An inference server in a learner's process is
an actor, too: a thread whose learner is its own rank.
"""

from __future__ import annotations

import time

from hpc_rl.algorithms.base import flatten
from hpc_rl.roles.base import Seat, central, sampler, schemas
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Orders
from hpc_rl.roles.records import Records
from hpc_rl.roles.relay import Relay
from hpc_rl.roles.reporter import Reporter
from hpc_rl.samplers.base import Sampler, Split
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped


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
    waiting.until(lambda: relay.newest() >= 0 or orders.stopping(), "the first weights")
    begin = relay.version

    def weights() -> int:
        if seat.job.schedule == "free":
            return relay.newest()
        wanted = begin + max(0, outbox.sent - 1)  # fragment k is made by the weights before update k - 1
        waiting.until(lambda: relay.newest(wanted) == wanted, f"version {wanted} of the weights", orders.stopping)
        return wanted

    made: Sampler
    if seat.job.sampler == "central":
        served = central(seat, policy, recorded, split, pulse)
        made, shares = served, [lane.columns for lane in served.lanes]
        record = Records(seat, recorded, shares, [plan.places[remote.peer].name for remote in served.remotes])
    else:
        made = sampler(seat, policy, split, pulse, seat.place.threads)
        record = Records(seat, recorded, [made.columns], [seat.place.name])
    reporter = Reporter(seat, split)
    began = int(made.steps.sum())
    try:
        while not orders.stopping():
            tree = outbox.lend()
            made.collect(tree, weights)
            now = time.perf_counter()
            record.write(tree)
            if orders.due():
                record.roll()
            tree["closed"][:] = record.closed(tree)
            now = split.timed("record", now)
            outbox.wait(give_up=orders.stopping)
            now = split.timed("wait", now)
            outbox.put(tree, relay.version)
            split.timed("send", now)
            if reporter.due():
                more = {"torn_reads": float(relay.weights.torn), **made.figures()}
                reporter.report(int(made.steps.sum()) - began, more)
    except Stopped:
        pass
    record.close()
    outbox.flush()
    reporter.report(int(made.steps.sum()) - began, {"recorded_bytes": float(record.bytes_written)})
    made.close()
    orders.last_word(split, reporter)
    reporter.close()
    relay.close()
