"""Lost actors, where the job tolerates them: how one is noticed, who is told, and when too few are left.

Every actor sends rank 0 a sign of life between its moves. One of which rank 0 has heard nothing for `SILENCE` of
resources.deadline_s is lost, and so is one of which the MPI library reports that it has ended. Rank 0 tells the other
learners and the replay ranks, and the actor itself: should it have been only slow, it leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from hpc_rl.plan import Plan
from hpc_rl.runtime.counters import Limits
from hpc_rl.settings import TOO_FEW
from hpc_rl.transport.ports import Link, Ports
from hpc_rl.transport.waiting import Deadline, Done, Heartbeat, Stopped, Waiting
from hpc_rl.types import Array

BEATS, NOTICES, PARTING = 100, 102, 104  # tags
SILENCE, SLOW_START = 0.25, 0.75  # parts of the deadline: between signs of life, and before the first
LOOK_S = 0.02  # between two looks at messages
PART_S = 5.0  # the longest that the first rank waits for the others' goodbye


@dataclass
class Losses:
    """The actors that are lost, as this rank knows it; ``lost`` is what `Waiting.lost` calls."""

    link: Link
    ranks: set[int] = field(default_factory=set)
    look: Callable[[], None] = lambda: None
    looked: float = 0.0

    def lost(self) -> Collection[int]:
        """The ranks, after a look at what has arrived."""
        if time.monotonic() - self.looked > LOOK_S:
            self.looked = time.monotonic()
            self.look()
        return self.ranks


def tolerate(
    ports: Ports, plan: Plan, limits: Limits, report: Callable[[int, str], None], leave: Callable[[], None]
) -> Callable[[], None]:
    """Have this rank notice lost actors, or hear of them; on an actor what gives a sign of life, to be called often.

    ``report`` gets each loss on rank 0; ``leave`` ends an actor that was given up.
    """
    link, waiting, actors = ports.link, ports.waiting, plan.of("actor")
    takers = [*plan.learners, *plan.of("replay_server")]
    link.tolerated = set(actors)
    if link.rank == 0:
        losses = Watch(link, waiting, actors, takers[1:], report).losses
        waiting.lost, requested = losses.lost, limits.requested
        limits.requested = lambda: requested() or _too_few(plan, losses.lost(), limits)
    elif link.rank in takers:
        waiting.lost = Notices(link).losses.lost
    elif link.rank in actors:
        return Beats(link, waiting.deadline_s, leave)
    return lambda: None


def _too_few(plan: Plan, lost: Collection[int], limits: Limits) -> bool:
    """Whether a learner or replay rank is left without actors; ``limits`` then say so."""
    for rank in plan.of("replay_server") or plan.learners:
        if all(peer in lost for peer in plan.ranks[rank].peers if plan.ranks[peer].role == "actor"):
            limits.why = f"{TOO_FEW}: none sends to {plan.ranks[rank].name} any more"
            return True
    return False


def part(ports: Ports) -> None:
    """Return once all others that are left have called it, or soon: without a collective, which lost ranks miss."""
    link, waiting, word = ports.link, ports.waiting, np.zeros(1, np.int8)
    end = time.monotonic() + PART_S
    living = [r for r in range(1, link.size) if r not in waiting.lost()]
    words = [np.zeros(1, np.int8) for _ in living]
    received = [link.irecv(word, r, PARTING) for r, word in zip(living, words, strict=True)] if not link.rank else []
    pending = received or [link.isend(word, 0, PARTING)]
    with suppress(Stopped, Deadline):
        waiting.until(lambda: all(done() for done in pending), "the others", lambda: time.monotonic() > end)


class Watch:
    """Rank 0: hears the actors, and tells ``others``. ``report`` gets each loss: rank, how it was noticed."""

    def __init__(
        self,
        link: Link,
        waiting: Waiting,
        actors: Sequence[int],
        others: Sequence[int],
        report: Callable[[int, str], None],
    ) -> None:
        self.link, self.deadline_s, self.others, self.report = link, waiting.deadline_s, others, report
        self.losses = Losses(link, look=self._look)
        self.looked = time.monotonic()
        self.heard_at = dict.fromkeys(actors, self.looked)
        self.begun: set[int] = set()  # those that were heard of
        self.beats = {r: np.zeros(1, np.int8) for r in actors}
        self.arrived = {r: link.irecv(self.beats[r], r, BEATS) for r in actors}
        self.notices: list[tuple[Array, Done]] = []

    def _look(self) -> None:
        now = time.monotonic()
        if (pause := now - self.looked) > SILENCE * self.deadline_s / 4:  # a pause of this rank is not their silence
            self.heard_at = {r: heard + pause for r, heard in self.heard_at.items()}
        self.looked = now
        for r in self.heard_at:
            while r not in self.losses.ranks and self.arrived[r]():
                self.arrived[r] = self.link.irecv(self.beats[r], r, BEATS)
                self.heard_at[r] = now
                self.begun.add(r)
        for r, heard in self.heard_at.items():
            limit = self.deadline_s * (SILENCE if r in self.begun else SLOW_START)
            if r not in self.losses.ranks and (r in self.link.failed or now - heard > limit):
                self._lose(r, "it has ended" if r in self.link.failed else f"nothing was heard of it for {limit:.0f} s")

    def _lose(self, rank: int, how: str) -> None:
        self.losses.ranks.add(rank)
        for other in (*self.others, *({rank} - self.link.failed)):
            notice = np.array([rank], np.int64)
            self.notices.append((notice, self.link.isend(notice, other, NOTICES)))
        self.report(rank, how)


class Notices:
    """Another rank that actors send to, or that tells them to stop: hears of losses from rank 0."""

    def __init__(self, link: Link) -> None:
        self.link, self.notice = link, np.zeros(1, np.int64)
        self.losses = Losses(link, look=self._look)
        self.arrived = link.irecv(self.notice, 0, NOTICES)

    def _look(self) -> None:
        while self.arrived():
            self.losses.ranks.add(int(self.notice[0]))
            self.arrived = self.link.irecv(self.notice, 0, NOTICES)


class Beats:
    """An actor: a sign of life to rank 0 now and then; ``leave`` is called once rank 0 has given it up."""

    def __init__(self, link: Link, deadline_s: float, leave: Callable[[], None]) -> None:
        self.link, self.leave, self.notice, self.beat = link, leave, np.zeros(1, np.int64), np.zeros(1, np.int8)
        self.due = Heartbeat(min(1.0, SILENCE * deadline_s / 8))
        self.sent: Done = lambda: True
        self.given_up = link.irecv(self.notice, 0, NOTICES)

    def __call__(self) -> None:
        if not self.due.due():
            return
        if self.given_up():
            self.leave()
        if self.sent():
            self.sent = self.link.isend(self.beat, 0, BEATS)
