"""What a role gets of the transport: a link, how to wait on it, and the small exchanges written on top of both."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.transport.base import Link
from hpc_rl.transport.waiting import Deadline, Done, Waiting
from hpc_rl.types import Array

END, HOLD, RELEASE = 97, 1, 2  # tag, and what the first of some ranks tells the others
ROLL_CALL, ROLL_CALL_S = 98, 3.0  # tag, and the longest that an answer may take


@dataclass
class Ports:
    """What a role gets of the transport: the link, how to wait, and the start-up exchanges written on top of it."""

    link: Link
    waiting: Waiting = field(default_factory=Waiting)

    def gather(self, data: bytes, members: Sequence[int], tag: int = 90) -> list[bytes]:
        """Bytes of every member, in order, at ``members[0]``; elsewhere an empty list. Raises Deadline."""
        root, link = members[0], self.link
        if link.rank != root:
            payload = np.frombuffer(data, np.uint8)
            size = np.array([len(data)], np.int64)
            self._finish(
                [link.isend(size, root, tag), link.isend(payload, root, tag + 1)],
                f"{self.waiting.who([root])} to gather",
            )
            return []
        others = [m for m in members if m != root]
        sizes = {m: np.zeros(1, np.int64) for m in others}
        self._finish([link.irecv(sizes[m], m, tag) for m in others], f"{self.waiting.who(others)} to report")
        parts = {m: np.empty(int(sizes[m][0]), np.uint8) for m in others}
        self._finish([link.irecv(parts[m], m, tag + 1) for m in others], f"{self.waiting.who(others)} to report")
        return [data if m == root else parts[m].tobytes() for m in members]

    def broadcast(self, value: Any, members: Sequence[int], tag: int = 94) -> Any:
        """The JSON value of ``members[0]``, at every member. Raises Deadline."""
        root, link = members[0], self.link
        if link.rank == root:
            payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
            size = np.array([payload.size], np.int64)
            sends = [link.isend(x, m, t) for m in members if m != root for x, t in ((size, tag), (payload, tag + 1))]
            self._finish(sends, "the other ranks to receive a broadcast")
            return value
        size = np.zeros(1, np.int64)
        self._finish([link.irecv(size, root, tag)], f"{self.waiting.who([root])} to broadcast")
        payload = np.empty(int(size[0]), np.uint8)
        self._finish([link.irecv(payload, root, tag + 1)], f"{self.waiting.who([root])} to broadcast")
        return json.loads(payload.tobytes())

    def hold(self, members: Sequence[int]) -> None:
        """Have the others wait on in `await_release`: called by the first member, more often than their deadline."""
        self._tell(members, HOLD)

    def release(self, members: Sequence[int]) -> None:
        """Let the other members return from `await_release`: called by the first one."""
        self._tell(members, RELEASE)

    def await_release(self, members: Sequence[int]) -> None:
        """Return once the first member calls `release`. Raises Deadline: it was silent for too long."""
        told, root = np.zeros(1, np.int8), members[0]
        while told[0] != RELEASE:
            self._finish([self.link.irecv(told, root, END)], f"{self.waiting.who([root])} to end the run")

    def _tell(self, members: Sequence[int], what: int) -> None:
        for m in members:
            if m != self.link.rank:
                self.link.isend(np.array([what], np.int8), m, END)

    def barrier(self, members: Sequence[int]) -> None:
        """Return once all members are here. Raises Deadline."""
        self.reduce(np.zeros(1), members)

    def reduce(self, data: Array, members: Sequence[int]) -> None:
        """Sum ``data`` in place over the members. Raises Deadline."""
        if len(members) == 1:
            return
        try:
            self.waiting.until(self.link.ireduce(data, members), "a reduction", spin_s=self.link.spin_s)
        except Deadline:
            raise self.unanswered(members) from None

    def unanswered(self, members: Sequence[int]) -> Deadline:
        """What to raise when a reduction was waited for in vain; takes seconds, to find out whom it waited for."""
        limit, who = self.waiting.deadline_s, self.lost(members)
        return Deadline(f"waited {limit:.0f} s for {who} to join a reduction; is that rank alive?")

    def lost(self, members: Sequence[int]) -> str:
        """Who of ``members`` is silent, for a sentence; to be called by all that a joint operation failed for."""
        lost = self._roll_call(members)
        return self.waiting.who(lost) if lost else f"one of {self.waiting.who(members)}"

    def _roll_call(self, members: Sequence[int]) -> list[int]:
        """Who does not answer: every rank that waits in vain calls all others at about the same time."""
        others = [m for m in members if m != self.link.rank]
        mine = np.zeros(1, np.int8)
        theirs = {m: np.zeros(1, np.int8) for m in others}
        heard = {m: self.link.irecv(theirs[m], m, ROLL_CALL) for m in others}
        for m in others:
            self.link.isend(mine, m, ROLL_CALL)
        end = time.monotonic() + min(ROLL_CALL_S, self.waiting.deadline_s)
        while (lost := [m for m in others if not heard[m]()]) and time.monotonic() < end:
            time.sleep(0.01)
        return lost

    def _finish(self, requests: list[Done], what: str) -> None:
        self.waiting.until(lambda: all(done() for done in requests), what)
