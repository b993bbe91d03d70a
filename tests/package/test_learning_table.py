"""What the learning bars report: how long it took to the target, never the return at which a run was told to stop.

Mutations seen to fail: the return printed; a run that did not arrive counted with its budget.
"""

from __future__ import annotations

from typing import Any

from hpc_rl import job as jobs
from hpc_rl.runtime.counters import Counters, complete
from tests.learning.run import table

JOB = {"algorithm": "a2c", "topology": "solo", "environment": {"id": "toy/catch"}}


def summary(steps: int, target: float | None) -> dict[str, Any]:
    """As a run that ends after ``steps`` writes it, whose games all return 476; its budget is 1 000 env steps."""
    job = jobs.parse({**JOB, "budget": {"env_steps": 1000, **({} if target is None else {"stop_at_return": target})}})
    counters = Counters(1, env_steps=steps)
    counters.recent.extend([476.0] * 100)
    return {
        "env_steps": steps,
        "reason": complete(job, counters),
        "wall_s": 60.0,
        "mean_return_100": counters.mean_return,
    }


def games() -> dict[str, Any]:
    figures = {"mean": 481.25, "low": 470.0, "high": 492.5, "games": 20, "distinct_games": 19}
    return {"greedy": figures, "sampled": {**figures, "low": None}}


def test_steps_to_the_target_and_games_afterwards_are_reported() -> None:
    lines = table("some_job", (1, 2, 3), [summary(n, 475.0) for n in (300, 500, 400)], [games()] * 3)
    assert lines[1].startswith(
        "some_job seed 2: 500 env steps, 1.0 min; greedy 481.25 [470.00, 492.50] (19 of 20 games"
    )
    assert lines[-1] == "some_job: median 400 env steps to the target, median 1.0 min"
    assert not any("476" in line for line in lines)


def test_a_run_that_does_not_arrive_has_no_steps_to_the_target() -> None:
    rows = [summary(300, 475.0), summary(1000, 480.0), summary(1000, None)]
    lines = table("some_job", (1, 2, 3), rows, [games()] * 3)
    assert "target not reached in 1,000 env steps" in lines[1] and "not reached" in lines[2]
    assert lines[-1].startswith("some_job: target not reached by most")
