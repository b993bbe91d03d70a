"""The actor: steps its columns with the newest weights it can see, and sends every fragment to its learner."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.algorithms.base import Flat
from hpc_rl.roles.base import Seat, recorder, sampler, schemas
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA, TRAJECTORIES
from hpc_rl.roles.relay import Relay
from hpc_rl.roles.reporter import Reporter
from hpc_rl.samplers.base import ACTIVITIES, Sampler, Split
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped
from hpc_rl.types import Tree


def actor(seat: Seat) -> None:
    """Act until the learner says stop. Blocks only on a credit of its learner."""
    link, waiting, plan = seat.ports.link, seat.ports.waiting, seat.plan
    learner, policy = seat.place.peers[0], seat.make_policy()
    recorded, sent = schemas(policy, seat.spec)
    width = len(seat.place.columns)
    outbox = Outbox(link, learner, TRAJECTORIES, Layout(sent, plan.steps, width, seat.spec.stack), waiting)
    control = Inbox(link, [learner], CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting)
    replies = Outbox(link, learner, REPLIES, Layout(REPLY_SCHEMA, 1, width), waiting)
    relay = Relay(seat, Flat(policy.net))
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
    rolled, began = 0, int(vector.steps.sum())
    seat.ports.waiting.until(lambda: relay.newest() >= 0 or stopping(), "the first weights")
    try:
        while not stopping():
            tree = outbox.lend()
            vector.collect(tree, relay.newest)
            now = time.perf_counter()
            record.write(tree)
            if orders["roll"] > rolled:
                record.roll()
                rolled = orders["roll"]
            tree["closed"][:] = record.closed
            now = split.timed("record", now)
            outbox.wait(give_up=stopping)
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
    replies.put(_last_word(record, vector, outbox, split, reporter), 0)
    replies.flush()
    reporter.close()
    vector.close()
    relay.close()


def _last_word(record: Recorder, vector: Sampler, outbox: Outbox, split: Split, reporter: Reporter) -> Tree:
    """What the learner needs for the final checkpoint and the summary."""
    return {
        "closed": record.closed,
        "column": vector.columns,
        "sent": np.array([outbox.sent]),
        "split_s": np.array([split.seconds[name] for name in ACTIVITIES]),
        "peak_rss_bytes": np.array([reporter.peak]),
    }
