"""How long something has been waited for, without the time in which this process itself was halted.

SLURM suspends jobs (preemption, gang scheduling, `scontrol suspend`), and people halt them: all ranks stand still for
minutes or days, and when they go on none of them is to blame for its silence.
"""

from __future__ import annotations

import time

HALTED = 0.25  # of the limit: of a longer pause between two looks no more is counted


class Patience:
    """Ends after ``limit_s`` of waiting."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.restart()

    def restart(self) -> None:
        """What was waited for has come; the next thing may take as long."""
        self.spent_s, self.looked = 0.0, time.monotonic()

    def over(self) -> bool:
        """Look at the clock; whether it has been waited for long enough."""
        now = time.monotonic()
        self.spent_s += min(now - self.looked, HALTED * self.limit_s)
        self.looked = now
        return self.spent_s > self.limit_s
