"""What is annealed never goes back where a resumed run has another budget.

Mutations seen to fail: progress as env steps over the budget of today, or where there is a budget of updates; a unit
that is not compared; updates that begin at the env steps of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import pytest

from hpc_rl.runtime.schedule import Schedule, schedule
from hpc_rl.settings import Budget


def attempt(budget: int, env_steps: int = 0, before: Schedule | None = None, updates: int = 0) -> Schedule:
    """The schedule of an attempt that begins at ``env_steps``, where a checkpoint said so."""
    meta: dict[str, Any] = {"env_steps": env_steps, "updates": env_steps // 10}
    if before is not None:
        meta["schedule"] = vars(before)
    return schedule(Budget(env_steps=budget, updates=updates), meta if env_steps else None)


def test_one_budget_is_a_straight_line_bit_for_bit() -> None:
    plain = attempt(977)
    for steps in (0, 1, 3, 333, 976, 977, 1200):
        assert plain.progress(steps, 0) == min(1.0, steps / 977)
    assert attempt(977, 333, plain) == plain


@pytest.mark.parametrize("budget", [600, 1000, 4000])
def test_another_budget_goes_on_from_where_it_is_and_ends_at_one(budget: int) -> None:
    first = attempt(1000)
    second = attempt(budget, 500, first)
    assert second.progress(500, 0) == first.progress(500, 0) == 0.5
    line = [second.progress(steps, 0) for steps in range(500, budget + 10)]
    assert line == sorted(line) and line[-1] == 1.0 and line[-11] < 1.0
    assert second.progress((500 + budget) // 2, 0) == pytest.approx(0.75)
    third = attempt(2 * budget, budget - 50, second)
    assert third.progress(budget - 50, 0) == second.progress(budget - 50, 0)


def test_what_has_come_to_its_end_stays_there() -> None:
    assert attempt(4000, 1010, attempt(1000)).progress(2000, 0) == 1.0
    assert attempt(900, 1010, attempt(2000)).progress(1010, 0) == 1.0


def test_a_checkpoint_without_a_schedule_is_taken_by_the_budget_of_today() -> None:
    assert attempt(1000, 500) == Schedule(1000)


def test_a_budget_of_updates_is_what_progress_goes_by() -> None:
    by_updates = attempt(977, updates=50)
    assert [by_updates.progress(900, k) for k in (0, 25, 50, 60)] == [0.0, 0.5, 1.0, 1.0]
    longer = attempt(977, 250, by_updates, updates=100)  # resumed at update 25
    assert longer.progress(250, 25) == 0.5 and longer.progress(9, 100) == 1.0
    other = attempt(1000, 250, by_updates)  # now by env steps
    assert other.progress(250, 25) == 0.5 and other.progress(1000, 26) == 1.0
    alike = attempt(50, 20, by_updates)  # as many env steps as there were updates
    assert alike.progress(20, 2) == 0.04 and alike.progress(50, 2) == 1.0


def test_a_schedule_of_an_older_checkpoint_went_by_env_steps() -> None:
    assert Schedule(**{"budget": 1000, "begin": 0, "reached": 0.0}).progress(500, 7) == 0.5
