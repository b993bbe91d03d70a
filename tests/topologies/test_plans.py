"""What a plan refuses before any rank is there."""

from __future__ import annotations

from typing import Any

import pytest

from hpc_rl import job as jobs

SOLO: dict[str, Any] = {"topology": "solo", "environment": {"id": "toy/catch", "columns": 8}}
SERVED: dict[str, Any] = {**SOLO, "topology": "parameter_server", "resources": {"ranks": 3}}
ACTORS: dict[str, Any] = {**SOLO, "topology": "actor_learner", "resources": {"ranks": 3}}


def plan(table: dict[str, Any], algorithm: str, method: dict[str, Any]) -> Any:
    job = jobs.parse({**table, "algorithm": algorithm, algorithm: method})
    return jobs.topology(job.topology).plan(job)


@pytest.mark.parametrize(
    ("table", "algorithm", "method", "most", "what"),
    [
        (SOLO, "ppo", {}, 128, "moves of a column"),
        (SOLO, "ppo", {"lstm": 8}, 8, "columns"),
        (SERVED, "ppo", {}, 128, "moves of a column"),
        (SERVED, "ppo", {"lstm": 8}, 4, "columns"),  # each worker learns from its own
        (SOLO, "impala", {}, 8, "columns"),
        (ACTORS, "impala", {}, 4, "columns"),
        (ACTORS, "impala", {"batch_columns": 8}, 8, "columns"),
    ],
)
def test_every_minibatch_has_data(
    table: dict[str, Any], algorithm: str, method: dict[str, Any], most: int, what: str
) -> None:
    assert plan(table, algorithm, {**method, "minibatches": most})
    for count in (most + 1, 999):
        with pytest.raises(jobs.BadJob, match=f"minibatches = {count} .* {most} {what} .* at most {most}"):
            plan(table, algorithm, {**method, "minibatches": count})


@pytest.mark.parametrize("name", jobs.shipped_jobs())
def test_shipped_jobs_can_be_planned(name: str) -> None:
    job = jobs.load(name)
    assert jobs.topology(job.topology).plan(job)
