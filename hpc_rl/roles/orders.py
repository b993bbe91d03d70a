"""Orders from a rank that learns to those that collect for it, and their last words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpc_rl.roles.base import Seat
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA
from hpc_rl.roles.reporter import Reporter
from hpc_rl.samplers.base import ACTIVITIES, Sampler, Split
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout


class Command:
    """The learning side, towards ranks that collect ``width`` columns each."""

    def __init__(self, seat: Seat, peers: Sequence[int], width: int) -> None:
        link, waiting = seat.ports.link, seat.ports.waiting
        self.peers = list(peers)
        self.control = [Outbox(link, peer, CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting) for peer in peers]
        self.replies = Inbox(link, peers, REPLIES, Layout(REPLY_SCHEMA, 1, width), waiting, credits=1)

    def order(self, roll: int, stop: bool = False) -> None:
        """Close segments for checkpoint number ``roll``, or close everything and leave."""
        for outbox in self.control:
            outbox.put({"stop": np.array([int(stop)]), "roll": np.array([roll])}, 0)

    def last_words(self, *inboxes: Inbox) -> list[dict[str, Any]]:
        """Wait for every rank's last word; what is on its way to ``inboxes`` is dropped, so that no send is left."""
        found: list[dict[str, Any]] = []

        def all_here() -> bool:
            for inbox in inboxes:
                if (message := inbox.poll()) is not None:
                    inbox.release(message)
            if (reply := self.replies.poll()) is not None:
                found.append({name: x.copy() for name, x in reply.tree.items()} | {"rank": reply.peer})
            return len(found) == len(self.peers)

        count = len(self.peers)
        self.replies.waiting.until(all_here, lambda: f"the last words of {count - len(found)} of {count} ranks")
        return found


class Orders:
    """The collecting side. ``pulse`` is what else this rank must keep going while it waits."""

    def __init__(self, seat: Seat, chief: int, pulse: Callable[[], None] = lambda: None) -> None:
        link, waiting = seat.ports.link, seat.ports.waiting
        self.control = Inbox(link, [chief], CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting)
        self.replies = Outbox(link, chief, REPLIES, Layout(REPLY_SCHEMA, 1, len(seat.place.columns)), waiting)
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

    def due(self) -> bool:
        """Whether segments are to be closed; once for every order."""
        due, self.rolled = self.roll > self.rolled, self.roll
        return due

    def last_word(self, record: Recorder, sampler: Sampler, sent: int, split: Split, reporter: Reporter) -> None:
        """What the final checkpoint and the summary need of this rank."""
        word = {
            "closed": record.closed,
            "column": sampler.columns,
            "sent": np.array([sent]),
            "split_s": np.array([split.seconds[name] for name in ACTIVITIES]),
            "peak_rss_bytes": np.array([reporter.peak]),
        }
        self.replies.put(word, 0)
        self.replies.flush()
