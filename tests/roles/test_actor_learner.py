"""Every way to arrange actors and learners keeps every step, and agrees with the others.

Mutations seen to fail: a learner that books only its own actors; the block of another learner overwritten; a thread's
error not raised; the newest weights in the place of the last but one; fragments taken as they come.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.storage import checkpoint
from tests.contract.seats import Ran, left_over, run_job
from tests.contract.test_witness import check_column, column_of, table_of

WAYS: dict[str, dict[str, Any]] = {
    "alternating": {"sampler": "alternating", "resources": {"ranks": 3}},
    "two learners": {"resources": {"ranks": 4, "learners": 2}},
    "deterministic": {"schedule": "deterministic", "resources": {"ranks": 3}, "impala": {"batch_columns": 4}},
    "two in turn": {"schedule": "deterministic", "resources": {"ranks": 4, "learners": 2}},
    "central": {"sampler": "central", "resources": {"ranks": 3}},
    "central, batches": {"sampler": "central", "resources": {"ranks": 5}, "impala": {"batch_columns": 3}},
    "central, two learners": {"sampler": "central", "resources": {"ranks": 4, "learners": 2}},
    "central, actors": {"sampler": "central", "resources": {"ranks": 5, "inference": "actor", "servers": 2}},
}
BESIDE = ("central", "central, batches", "central, two learners")  # inference servers in a learner's process


def table_for(way: dict[str, Any], env_steps: int = 600, **environment: Any) -> dict[str, Any]:
    table = table_of("impala", "actor_learner", 3, env_steps)
    for key, value in way.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    table["resources"]["threads"] = 1
    table["environment"] |= environment
    return table


@pytest.mark.parametrize("way", WAYS)
def test_no_step_is_lost_doubled_or_reordered(way: str, tmp_path: Path) -> None:
    table = table_for(WAYS[way])
    table["checkpoint"] = {"interval_s": 0.1}
    job_run = run_job(table, tmp_path / "run")
    moves = {column: check_column(column_of(job_run.run.path, column)) for column in range(4)}
    files = sorted(job_run.run.checkpoints.glob("0*.h5"))
    _, meta = checkpoint.load(files[-1])
    through = {int(column): step for column, step in meta["steps"].items()}
    assert meta["env_steps"] == sum(through.values()) >= 600, "steps were booked twice or not at all"
    assert all(0 < through[column] <= moves[column] for column in moves)
    assert len(files) > 1, "no checkpoint was written on the way"
    splits = json.loads(job_run.run.summary_file.read_text())["split_s"]
    assert splits["learner-0"]["learn"] > 0 and ("learner-0/inference" in splits) == (way in BESIDE)
    learners = list(job_run.learners.values())
    assert len(learners) == table["resources"].get("learners", 1)
    assert all(torch.equal(x.weights.data, learners[0].weights.data) for x in learners)
    assert left_over(job_run) == []


def trained(folder: Path, ranks: int, learners: int = 1) -> Ran:
    way = {"schedule": "deterministic", "resources": {"ranks": ranks, "learners": learners}}
    table = table_for({**way, "impala": {"batch_columns": 4, "learning_rate": 1e-3}}, 1000, id="toy/catch")
    return run_job(table, folder)


def test_a_deterministic_schedule_repeats_bitwise_and_lags_by_one(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "one", 3), trained(tmp_path / "other", 3)
    assert torch.equal(one.learners[0].weights.data, other.learners[0].weights.data)
    for column in range(4):
        a, b = column_of(one.run.path, column), column_of(other.run.path, column)
        rows = min(len(a["action"]), len(b["action"])) - 40  # the ends differ: what was on its way when they stopped
        assert rows > 150 and a["action"][:rows].tobytes() == b["action"][:rows].tobytes()
    summary = json.loads(one.run.summary_file.read_text())
    assert summary["policy_lag"] == pytest.approx(1.0, abs=0.05)


def test_the_number_of_actors_and_learners_changes_nothing_in_turn(tmp_path: Path) -> None:
    expected = trained(tmp_path / "1", 2).learners[0].weights.data
    for ranks, learners in ((3, 1), (5, 1), (4, 2)):
        weights = trained(tmp_path / f"{ranks}-{learners}", ranks, learners).learners[0].weights.data
        assert (weights - expected).abs().max() <= 1e-5, f"{ranks} ranks, {learners} learners"


def test_an_error_beside_the_learner_is_the_learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc_rl.samplers.central import Central

    def broken(*arguments: Any) -> None:
        raise ValueError("as the test wants it")

    monkeypatch.setattr(Central, "collect", broken)
    with pytest.raises(ValueError, match="as the test wants it"):
        run_job(table_for(WAYS["central"]), tmp_path / "run")


REFUSED = [
    ({"sampler": "alternating", "environment": {"columns": 6}, "resources": {"ranks": 3}}, "multiple of 4"),
    ({"sampler": "central", "resources": {"ranks": 1}}, "1 learner and 1 environment worker"),
    ({"sampler": "central", "resources": {"ranks": 2, "inference": "actor"}}, "1 learner and 1 actor and"),
    (
        {"resources": {"ranks": 5, "learners": 2}, "environment": {"columns": 6}},
        "3 actors .* by 2 learners; .* 2 actors",
    ),
    (
        {
            "sampler": "central",
            "resources": {"ranks": 6, "inference": "actor", "servers": 2},
            "environment": {"columns": 6},
        },
        "3 environment workers .* by 2 servers",
    ),
    (
        {"sampler": "central", "resources": {"ranks": 5, "learners": 2}, "environment": {"columns": 6}},
        "3 environment workers .* by 2 learners",
    ),
    ({"resources": {"ranks": 4, "learners": 2}, "impala": {"batch_columns": 6}}, "times 2 learners"),
    ({"schedule": "deterministic", "resources": {"ranks": 3}}, "batch_columns = 4 instead of 2"),
    ({"schedule": "deterministic", "sampler": "central", "resources": {"ranks": 3}}, 'sampler = "vector"'),
    ({"topology": "allreduce", "sampler": "central", "resources": {"ranks": 2}}, "no place on topology allreduce"),
    ({"topology": "allreduce", "resources": {"ranks": 3}}, "columns = 4 cannot be shared by 3 ranks"),
    ({"topology": "allreduce", "resources": {"ranks": 2, "learners": 2}}, "learners = 2 has no effect here"),
    ({"resources": {"ranks": 3, "quorum": 2}}, "quorum = 2 .*applies to topology parameter_server only"),
    ({"resources": {"ranks": 3, "inference": "actor"}}, "inference = 'actor' .*applies to sampler = \"central\""),
    ({"resources": {"ranks": 3, "servers": 2}}, "servers = 2 .*remove it"),
    (
        {"topology": "solo", "resources": {"ranks": 1}, "schedule": "deterministic"},
        "schedule = 'deterministic' has no effect",
    ),
]


@pytest.mark.parametrize(("way", "words"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(way: dict[str, Any], words: str) -> None:
    with pytest.raises(BadJob, match=words):
        job = jobs.parse(table_for(way), "test")
        jobs.plan(job)
