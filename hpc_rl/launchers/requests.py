"""Requests of a user, a shell or a batch system to a launcher, by signals: save and stop, or abort."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

AGAIN_S = 0.5  # a signal that comes sooner after the first is the same request: shells and terminals send several
_FIRST = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGHUP: "SIGHUP (the terminal was closed)",
}
_ABORTS = (signal.SIGINT, signal.SIGTERM)  # a closed terminal sends SIGHUP twice, and no user means an abort by it


class Requests:
    """Catches the signals while it is entered. ``first`` is the name of the first one; ``abort`` after a second."""

    def __init__(self) -> None:
        self.first, self.abort = "", False
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Requests:
        for number in _FIRST:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.first:
            self.first, self._at = _FIRST[signal.Signals(number)], now
        elif number in _ABORTS and now - self._at > AGAIN_S:
            self.abort = True
