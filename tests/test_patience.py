"""Waiting ends at a limit, of which the time that the process was halted is no part.

Mutations seen to fail: pauses counted in full; none counted; `restart` without a new beginning.
"""

from __future__ import annotations

import pytest

from hpc_rl import patience
from hpc_rl.patience import Patience
from hpc_rl.transport.waiting import Deadline, Waiting


class Clock:
    """Every look finds it ``step_s`` later, but the one number ``halt`` an hour."""

    def __init__(self, step_s: float, halt: int = 0) -> None:
        self.step_s, self.halt, self.now, self.looks = step_s, halt, 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        self.now += 3600.0 if self.looks == self.halt else self.step_s
        return self.now

    def sleep(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize(("halt", "looks"), [(0, 101), (50, 77)])
def test_a_halt_counts_as_a_quarter_of_the_limit_at_most(
    halt: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "time", Clock(1.0, halt))
    waited = Patience(100.0)
    assert next(k for k in range(1, 1000) if waited.over()) == looks
    waited.restart()
    assert not waited.over()


def test_a_wait_outlasts_a_halt_and_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "time", Clock(1.0, 10))
    looks = iter(range(80))
    Waiting(100.0).until(lambda: next(looks) == 79, "something")
    with pytest.raises(Deadline, match="waited 100 s for something"):
        Waiting(100.0).until(lambda: False, "something")
