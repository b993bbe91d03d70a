"""Every way to arrange actors, replay ranks and learners keeps every step, and a deterministic one repeats bitwise.

Mutations seen to fail: arrivals counted by both learners; fragments taken as they come; the newest weights for a
deterministic fragment; replay ranks whose state is left out of the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.storage.packing import to_bytes
from tests.contract.seats import Ran, left_over, newest, replays, run_job
from tests.contract.test_witness import check_column, column_of, table_of

WAYS: dict[str, dict[str, Any]] = {
    "two actors": {"resources": {"ranks": 4}},
    "two of each": {"resources": {"ranks": 6, "replays": 2, "learners": 2}},
    "central": {"sampler": "central", "resources": {"ranks": 4}},
    "central, actor": {"sampler": "central", "resources": {"ranks": 5, "inference": "actor"}},
    "in turn": {"schedule": "deterministic", "resources": {"ranks": 4}},
}
DQN = {"min_size": 100, "capacity": 4000, "n_step": 3}


def table_for(way: dict[str, Any], env_steps: int = 600) -> dict[str, Any]:
    table = table_of("dqn", "actor_replay_learner", 3, env_steps, **DQN)
    for key, value in way.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    table["resources"]["threads"] = 1
    return table


@pytest.mark.parametrize("way", WAYS)
def test_no_step_is_lost_doubled_or_reordered(way: str, tmp_path: Path) -> None:
    job_run = run_job({**table_for(WAYS[way]), "checkpoint": {"interval_s": 0.2}}, tmp_path / "run")
    moves = {column: check_column(column_of(job_run.run.path, column)) for column in range(4)}
    _, meta = newest(job_run)
    through = {int(column): step for column, step in meta["steps"].items()}
    assert meta["env_steps"] == sum(through.values()) >= 600, "steps were counted twice or not at all"
    assert all(0 < through[column] <= moves[column] for column in moves)
    counted = meta["env_steps"] + (meta["episodes"] if way == "in turn" else 0)  # there moves between episodes, too
    assert (counted - 100) // 4 >= meta["updates"] > 0, "more updates than samples_per_insert allows"
    kept = {int(c): int(n) for part in replays(job_run) for c, n in zip(part["column"], part["env_steps"], strict=True)}
    assert kept.keys() == moves.keys() and all(through[c] <= kept[c] <= moves[c] for c in moves)
    learners = list(job_run.learners.values())
    assert all(torch.equal(x.weights.data, learners[0].weights.data) for x in learners)
    assert left_over(job_run) == []


def in_turn(folder: Path, env_steps: int = 300, resume: Ran | None = None) -> Ran:
    way = {"schedule": "deterministic", "resources": {"ranks": 6, "replays": 2, "learners": 2}}
    return run_job(table_for(way, env_steps), folder, resume=resume)


def bits(ran: Ran) -> list[bytes]:
    """The weights, and all that its replays hold."""
    return [ran.learners[0].weights.data.numpy().tobytes(), *(to_bytes(part) for part in replays(ran))]


def test_a_deterministic_schedule_repeats_bitwise_and_goes_on_so(tmp_path: Path) -> None:
    """Both times what the replay ranks hold at the end is the same, and so is what follows from it."""
    one, other = in_turn(tmp_path / "one"), in_turn(tmp_path / "other")
    assert bits(one) == bits(other) and len(bits(one)) == 3
    updates = [json.loads(ran.run.summary_file.read_text())["updates"] for ran in (one, other)]
    assert updates[0] == updates[1] > 30
    resumed = [in_turn(tmp_path / f"{name} resumed", 400, ran) for name, ran in (("one", one), ("other", other))]
    assert bits(resumed[0]) == bits(resumed[1]) != bits(one)
    # 96 moves allow 24 updates, of which 11 are under way when the run ends; a replay of min_size 100 would allow none
    assert newest(resumed[0])[1]["updates"] > updates[0] + 5, "the replay was filled anew"


def test_a_resumed_job_goes_on_with_its_replay_on_another_number_of_ranks(tmp_path: Path) -> None:
    before = run_job(table_for({"resources": {"ranks": 4}}, 400), tmp_path / "before")
    ran = run_job(table_for({"resources": {"ranks": 7, "replays": 2}}, 600), tmp_path / "after", resume=before)
    state, meta = newest(ran)
    assert len(state["stores"]) == 4 and meta["updates"] > newest(before)[1]["updates"]
    steps = sum(int(part["env_steps"].sum()) for part in replays(ran))
    assert steps >= meta["env_steps"] >= 600, "the replay began anew"
    assert (steps - 100) // 4 >= meta["updates"], "the updates before were made once more"


REFUSED = [
    ({"resources": {"ranks": 2}}, "at least 3 ranks .1 learner, 1 replay rank, 1 actor"),
    ({"resources": {"ranks": 6, "replays": 2}, "environment": {"columns": 6}}, "3 actors .* by 2 replay ranks"),
    ({"schedule": "deterministic", "resources": {"ranks": 3}, "dqn": {"min_size": 0}}, "min_size to 60 or more"),
    ({"schedule": "deterministic", "sampler": "central", "resources": {"ranks": 3}}, 'sampler = "vector"'),
    ({"topology": "allreduce", "resources": {"ranks": 2, "replays": 2}}, "replays = 2 .*actor_replay_learner only"),
]


@pytest.mark.parametrize(("way", "words"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(way: dict[str, Any], words: str) -> None:
    with pytest.raises(BadJob, match=words):
        jobs.plan(jobs.parse(table_for(way), "test"))
