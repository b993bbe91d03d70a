"""Waiting, the one way in which this package blocks.

Blocking law: every wait is `Waiting.until`: spin briefly, sleep with back-off, look at the stop flag, end at a deadline
in a sentence that names the ranks it waited for. Time in which this process was halted does not count.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from hpc_rl.patience import Patience

NAP_S = 1e-3  # the longest sleep where others wait for what this rank does next
SHARE = 0.05
DOZE_S = 5e-3  # of a rank that serves or follows others and is idle for long: it looks up less, for their cores' sake

Done = Callable[[], bool]
"""Tests one request without blocking; True once it is complete, and from then on."""


class Deadline(RuntimeError):
    """A wait ended without what it waited for."""


class Stopped(Exception):
    """A wait was given up because the run is stopping."""


@dataclass
class Heartbeat:
    """When to send a sign of life to a rank that waits, and that is not owed any message for long."""

    every_s: float
    last: float = -math.inf  # the first one is due at once

    def due(self) -> bool:
        """``every_s`` have passed since the last time that this was true."""
        now = time.monotonic()
        if now - self.last < self.every_s:
            return False
        self.last = now
        return True


@dataclass
class Waiting:
    """How this rank waits. ``pulse`` is called between tests (relay work, heartbeat); ``waited_s`` adds up."""

    deadline_s: float = 120.0
    pulse: Callable[[], None] = lambda: None
    waited_s: float = 0.0
    hosts: tuple[str, ...] = ()  # of each rank, once known
    lost: Callable[[], Collection[int]] = lambda: ()  # ranks that nobody waits for any longer

    def who(self, ranks: Iterable[int]) -> str:
        """The ranks with their hosts, for a sentence."""
        return ", ".join(f"rank {r}" + (f" on {self.hosts[r]}" if self.hosts else "") for r in ranks)

    def until(
        self,
        done: Done,
        awaited: Callable[[], str] | str,
        give_up: Done = lambda: False,
        spin_s: float = 0.0,
        longest_sleep_s: float = NAP_S,
    ) -> None:
        """Return once ``done()``. For the first ``spin_s`` it yields the core instead of sleeping.

        Sleeps grow to `NAP_S`, and from there with what has been waited so far, of which they are `SHARE`, to
        ``longest_sleep_s``.

        Raises:
            Stopped: ``give_up()`` became true first.
            Deadline: neither happened within ``deadline_s``; the message names ``awaited``.
        """
        begin, patience = time.monotonic(), Patience(self.deadline_s)
        pause = 20e-6
        spins = 0
        while not done():
            if give_up():
                self.waited_s += time.monotonic() - begin
                raise Stopped
            spins += 1
            if spin_s and time.monotonic() - begin < spin_s:
                select.select((), (), (), 0)  # gives Python's lock to another thread of this process,
                os.sched_yield()  # and the core to another process
            elif spins > 20:
                self.pulse()
                time.sleep(min(max(pause, SHARE * (time.monotonic() - begin)), longest_sleep_s))
                pause = min(pause * 1.5, NAP_S)
                if patience.over():
                    sentence = awaited if isinstance(awaited, str) else awaited()
                    raise Deadline(f"waited {self.deadline_s:.0f} s for {sentence}; is that rank alive?")
        self.waited_s += time.monotonic() - begin
