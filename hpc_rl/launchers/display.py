"""What a launcher shows while ranks work, in a thread of its own: a display that fails or blocks touches no rank."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

_PAUSE_S = 0.1
_CLOSE_S = 5.0  # a terminal that takes nothing (Ctrl-S, a pager, a lost connection) is not waited for any longer


class Display:
    """Calls ``tick`` several times a second, prints sentences, and passes on what ranks warn of in ``log``."""

    def __init__(self, tick: Callable[[], None], log: Path, begin: int) -> None:
        self._tick, self._log, self._read = tick, log, begin
        self._sentences: SimpleQueue[str] = SimpleQueue()
        self._over, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def show(self, sentence: str) -> None:
        """Print it as soon as the terminal takes it; returns at once."""
        self._sentences.put(sentence)

    def close(self) -> None:
        """Look once more, and end."""
        self._over.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._over.wait(_PAUSE_S)
            for work in (self._show_sentences, self._pass_warnings_on, self._tick):
                try:
                    work()
                except Exception as error:  # of any kind: the next look may well succeed
                    self._note(error)

    def _note(self, error: Exception) -> None:
        """Print the error once; stderr may be closed."""
        if not self._failed:
            self._failed = True
            with contextlib.suppress(Exception):
                text = f"warning: the display failed ({type(error).__name__}: {error}); the ranks go on"
                print(text, file=sys.stderr, flush=True)

    def _show_sentences(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                print(self._sentences.get_nowait(), file=sys.stderr, flush=True)

    def _pass_warnings_on(self) -> None:
        """Show what the ranks have warned of in their log since the last look."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            fresh = log.read()
        lines = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(lines)
        for line in lines.decode(errors="replace").splitlines():
            if line.startswith("warning: "):
                print(line, file=sys.stderr, flush=True)
