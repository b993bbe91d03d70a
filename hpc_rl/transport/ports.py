"""What a role gets of the transport: a link, how to wait on it, and the small exchanges written on top of both."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hpc_rl.transport.waiting import Deadline, Done, Waiting
from hpc_rl.types import Array

END, HOLD, RELEASE, PART = 97, 1, 2, 3  # tag, and the words that the first of some ranks sends to the others
ROLL_CALL, ROLL_CALL_S = 98, 3.0  # tag, and the longest that an answer may take


class Link(Protocol):
    """Moves bytes between ranks without blocking. Buffers must stay alive until the returned test is True."""

    rank: int
    size: int
    spin_s: float  # how long a wait for a reduction should not sleep
    tolerated: Collection[int]  # ranks whose end is no error
    failed: set[int]  # those of them of which the library itself says that they have ended

    def isend(self, data: Array, peer: int, tag: int) -> Done: ...

    def irecv(self, data: Array, peer: int, tag: int) -> Done: ...

    def ireduce(self, data: Array, members: Sequence[int]) -> Done:
        """Sum ``data`` in place over the ranks ``members``."""
        ...

    def prepare(self, members: Sequence[int]) -> None:
        """Make reductions among ``members`` (not all ranks) possible. Called at start by each of them; may block."""
        ...

    def nodes(self) -> list[int]:
        """For each rank the lowest rank on its node. Collective; called once at start."""
        ...


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
        peers = [m for m in members if m != root]
        sizes = {m: np.zeros(1, np.int64) for m in peers}
        self._finish([link.irecv(sizes[m], m, tag) for m in peers], f"{self.waiting.who(peers)} to report")
        parts = {m: np.empty(int(sizes[m][0]), np.uint8) for m in peers}
        self._finish([link.irecv(parts[m], m, tag + 1) for m in peers], f"{self.waiting.who(peers)} to report")
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
        self._send_word(members, HOLD)

    def release(self, members: Sequence[int], together: bool = True) -> None:
        """Let the other members return from `await_release`: called by the first one."""
        self._send_word(members, RELEASE if together else PART)

    def await_release(self, members: Sequence[int]) -> bool:
        """Return once the first member calls `release`, with its ``together``. Raises Deadline: it is silent."""
        message, root = np.zeros(1, np.int8), members[0]
        while message[0] not in (RELEASE, PART):
            self._finish([self.link.irecv(message, root, END)], f"{self.waiting.who([root])} to end the run")
        return bool(message[0] == RELEASE)

    def _send_word(self, members: Sequence[int], word: int) -> None:
        for m in members:
            if m != self.link.rank:
                self.link.isend(np.array([word], np.int8), m, END)

    def barrier(self, members: Sequence[int]) -> None:
        """Return once all members have called it. Raises Deadline."""
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
        """The exception for a reduction that did not complete; takes seconds, to find out which rank is silent."""
        limit, silent = self.waiting.deadline_s, self.lost(members)
        return Deadline(f"waited {limit:.0f} s for {silent} to join a reduction; is that rank alive?")

    def lost(self, members: Sequence[int]) -> str:
        """The silent ones of ``members``, for a sentence; to be called by all that a joint operation failed for."""
        silent = self._roll_call(members)
        return self.waiting.who(silent) if silent else f"one of {self.waiting.who(members)}"

    def _roll_call(self, members: Sequence[int]) -> list[int]:
        """The ranks that do not answer: every rank that waits in vain calls all others at about the same time."""
        peers = [m for m in members if m != self.link.rank]
        call = np.zeros(1, np.int8)
        answers = {m: np.zeros(1, np.int8) for m in peers}
        arrived = {m: self.link.irecv(answers[m], m, ROLL_CALL) for m in peers}
        for m in peers:
            self.link.isend(call, m, ROLL_CALL)
        end = time.monotonic() + min(ROLL_CALL_S, self.waiting.deadline_s)
        while (silent := [m for m in peers if not arrived[m]()]) and time.monotonic() < end:
            time.sleep(0.01)
        return silent

    def _finish(self, requests: list[Done], awaited: str) -> None:
        self.waiting.until(lambda: all(done() for done in requests), awaited)
