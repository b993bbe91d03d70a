"""The actor: steps its columns with the newest weights it can see, and sends every fragment to its learner."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.algorithms.base import Flat
from hpc_rl.roles.base import Seat, recorder, sampler, schemas
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA, TRAJECTORIES
from hpc_rl.roles.relay import Relay
from hpc_rl.roles.tally import Reporter
from hpc_rl.samplers.vector import ACTIVITIES, Split
from hpc_rl.transport.base import Inbox, Outbox, Stopped
from hpc_rl.transport.layout import Layout


def actor(seat: Seat) -> None:
    """Act until the learner says stop. Blocks only on a credit of its learner."""
    link, waiting, plan = seat.ports.link, seat.ports.waiting, seat.plan
    learner = seat.place.peers[0]
    policy = seat.make_policy()
    flat = Flat(policy.net)
    recorded, sent = schemas(policy, seat.spec)
    width = len(seat.place.columns)
    outbox = Outbox(link, learner, TRAJECTORIES, Layout(sent, plan.steps, width, seat.spec.stack), waiting)
    control = Inbox(link, [learner], CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting)
    replies = Outbox(link, learner, REPLIES, Layout(REPLY_SCHEMA, 1, width), waiting)
    relay = Relay(seat, flat)
    split, orders = Split(), {"stop": 0, "roll": 0}

    def pulse() -> None:
        relay.work()
        outbox.ready()  # lets a large message move on while this rank steps

    def stopping() -> bool:
        pulse()
        for message in iter(control.poll, None):
            orders["stop"] |= int(message.tree["stop"][0])
            orders["roll"] = max(orders["roll"], int(message.tree["roll"][0]))
            control.release(message)
        return bool(orders["stop"])

    record = recorder(seat, recorded)
    vector = sampler(seat, policy, split, pulse, seat.place.threads)
    reporter = Reporter(seat, split)
    version, rolled, began = -1, 0, int(vector.steps.sum())
    seat.ports.waiting.until(lambda: relay.newest(-1) >= 0 or stopping(), "the first weights")
    try:
        while not stopping():
            tree = outbox.lend()
            version = relay.newest(version)
            vector.collect(tree, version)
            now = time.perf_counter()
            record.write(tree)
            if orders["roll"] > rolled:
                record.roll()
                rolled = orders["roll"]
            tree["closed"][:] = record.closed
            now = split.timed("record", now)
            before = waiting.waited_s
            outbox.put(tree, version, give_up=stopping)
            waited = waiting.waited_s - before
            split.seconds["wait"] += waited
            split.seconds["send"] += time.perf_counter() - now - waited
            if reporter.due():
                lost = {"torn_reads": float(relay.weights.torn), "version": float(version)}
                reporter.report(int(vector.steps.sum()) - began, lost)
    except Stopped:
        pass
    record.close()
    outbox.flush()
    reporter.report(int(vector.steps.sum()) - began, {"recorded_bytes": float(record.bytes_written)})
    split_s = np.array([split.seconds[name] for name in ACTIVITIES])
    reply = {"closed": record.closed, "column": vector.columns, "sent": np.array([outbox.sent]), "split_s": split_s}
    reply["peak_rss_bytes"] = np.array([reporter.peak])
    replies.put(reply, 0)
    replies.flush()
    reporter.close()
    vector.environment.close()
    relay.close()
