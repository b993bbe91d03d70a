"""Orders from a rank that learns to those that collect for it, and their last words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.samplers.base import ACTIVITIES, Timings
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout


class ControlServer:
    """The learning side."""

    def __init__(self, context: RankContext, peers: Sequence[int]) -> None:
        link, waiting = context.ports.link, context.ports.waiting
        self.peers = list(peers)
        self.control = [Outbox(link, peer, CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting) for peer in peers]
        self.replies = Inbox(link, peers, REPLIES, Layout(REPLY_SCHEMA, 1, 1), waiting, credits=1)

    def order(self, roll: int, stop: bool = False) -> None:
        """Close segments for checkpoint number ``roll``, or close everything and leave."""
        for outbox in self.control:
            outbox.put({"stop": np.array([int(stop)]), "roll": np.array([roll])}, 0)

    def final_reports(self, *inboxes: Inbox) -> list[dict[str, Any]]:
        """Every rank's number, seconds by activity and largest memory.

        What is still on its way to ``inboxes`` is dropped, so that no send is left.
        """
        found: list[dict[str, Any]] = []

        def all_here() -> bool:
            for inbox in inboxes:
                if (message := inbox.poll()) is not None:
                    inbox.release(message)
            if (reply := self.replies.poll()) is not None:
                found.append({"rank": reply.peer} | {name: x[0].tolist() for name, x in reply.tree.items()})
            return len(found) == len(self.peers)

        count = len(self.peers)
        self.replies.waiting.until(all_here, lambda: f"the last words of {count - len(found)} of {count} ranks")
        return found


class ControlClient:
    """The collecting side. ``pulse`` is what else this rank must keep going while it waits."""

    def __init__(self, context: RankContext, chief: int, pulse: Callable[[], None] = lambda: None) -> None:
        link, waiting = context.ports.link, context.ports.waiting
        self.control = Inbox(link, [chief], CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting)
        self.replies = Outbox(link, chief, REPLIES, Layout(REPLY_SCHEMA, 1, 1), waiting)
        self.pulse = pulse
        self.stop, self.roll, self.rolled = False, 0, 0

    def stopping(self) -> bool:
        """Take new orders in; True once one was to stop."""
        self.pulse()
        for message in iter(self.control.poll, None):
            self.stop |= bool(message.tree["stop"][0])
            self.roll = max(self.roll, int(message.tree["roll"][0]))
            self.control.release(message)
        return self.stop

    def called(self) -> bool:
        """Take new orders in; True while one is not carried out. Ends a wait for others, who may wait for the chief."""
        return self.stopping() or self.roll > self.rolled

    def due(self) -> bool:
        """Whether segments are to be closed; once for every order."""
        due, self.rolled = self.roll > self.rolled, self.roll
        return due

    def send_final_report(self, timings: Timings, reporter: Reporter) -> None:
        """What the summary tells of this rank."""
        seconds = np.array([timings.seconds[name] for name in ACTIVITIES])
        self.replies.put({"split_s": seconds, "peak_rss_bytes": np.array([reporter.peak])}, 0)
        self.replies.flush()
