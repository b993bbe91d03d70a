"""The actor: steps its columns with the newest weights it can see, and sends every fragment to its learner."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.algorithms.base import Flat
from hpc_rl.roles.base import Reporter, Seat, recorder, sampler, schemas
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA, TRAJECTORIES, WEIGHTS, parameters_layout
from hpc_rl.samplers.vector import ACTIVITIES, Split
from hpc_rl.transport.base import Inbox, Outbox, Stopped
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.weights import Weights, shared_path


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


class Relay:
    """Where this actor's weights come from; the node's lowest rank also brings them to the node."""

    def __init__(self, seat: Seat, flat: Flat) -> None:
        link, rank = seat.ports.link, seat.place.rank
        learner = seat.place.peers[0]
        self.bytes = flat.parameter.data.numpy().view(np.uint8)
        node = seat.nodes[rank]
        self.mine = node == rank
        self.inbox = None
        path = shared_path(seat.token, node)
        if self.mine:
            self.weights = Weights(path, self.bytes.nbytes, create=True)
            layout = parameters_layout(self.bytes.nbytes)
            self.inbox = Inbox(link, [learner], WEIGHTS, layout, seat.ports.waiting, credits=1)
        seat.ports.barrier(range(link.size))  # every node's file exists
        if not self.mine:
            self.weights = Weights(path, self.bytes.nbytes, create=False)

    def work(self) -> None:
        """Pass on what the learner sent, if this rank is the node's relay."""
        if self.inbox is not None and (message := self.inbox.newest()) is not None:
            self.weights.write(message.tree["parameters"][0], message.version)
            self.inbox.release(message)

    def newest(self, have: int) -> int:
        """Put weights newer than ``have`` into the policy; the version it now holds."""
        return self.weights.read(self.bytes, have)

    def close(self) -> None:
        self.weights.close(remove=self.mine)
