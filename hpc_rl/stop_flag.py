"""Requests to stop a rank: by signals, and by the STOP file of its run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from hpc_rl.launchers.base import END_VARIABLE

STOP_POLL_S = 0.5


class StopFlag:
    """Becomes true by SIGUSR1, SIGTERM, SIGINT or SIGHUP, or by the STOP file; a second SIGTERM or SIGINT aborts."""

    def __init__(self) -> None:
        self.signals, self.first = 0, 0.0
        self.file: Path | None = None
        self.looked, self.seen = 0.0, False
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # that is nohup's wish
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: Any) -> None:
        # mpiexec and the launcher may both pass one request on, so only later ones count as a second wish.
        now = time.monotonic()
        # In a batch job they come from SLURM at the wall limit, and saving may still make it before SIGKILL.
        again = self.signals and now - self.first > 1.0 and number in (signal.SIGTERM, signal.SIGINT)
        if again and END_VARIABLE not in os.environ:
            os._exit(128 + number)
        self.first = now if not self.signals else self.first
        self.signals += 1

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.file is not None and not self.seen and now - self.looked > STOP_POLL_S:
            self.looked, self.seen = now, self.file.exists()
        return self.signals > 0 or self.seen
