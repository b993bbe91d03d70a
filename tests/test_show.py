"""The page of `hpc-rl show`: its numbers by hand, and the memory budget against measured runs.

Mutations seen to fail: a ring's slots without the stack of its next fragment; a replay in the best checkpoint; the
last games left out where a job evaluates nothing; a queue where nothing is mixed in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import Job
from hpc_rl.memory import MIB, budget, gather
from hpc_rl.replay.saving import PIECE_BYTES
from hpc_rl.show import _size, render

CATCH: dict[str, Any] = {
    "algorithm": "impala",
    "topology": "actor_learner",
    "environment": {"id": "toy/catch", "columns": 16},
    "resources": {"ranks": 3},
}
PONG: dict[str, Any] = {
    "algorithm": "impala",
    "topology": "actor_learner",
    "environment": {"id": "ALE/Pong-v5", "columns": 64},
    "impala": {"minibatches": 4},
    "resources": {"ranks": 3},
}
PPO_PONG: dict[str, Any] = {
    "algorithm": "ppo",
    "topology": "solo",
    "environment": {"id": "ALE/Pong-v5", "columns": 8},
}


def catch(**changes: Any) -> Job:
    return jobs.parse({**CATCH, **changes}, "catch")


def test_page_of_an_asynchronous_job() -> None:
    text = render(catch())
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "learner", "0", "0", "–", "1", "CPU", "or", "GPU"] in rows  # of vectors
    assert ["1–2", "actor", "0–1", "0", "0–15", "(8", "each)", "1", "CPU"] in rows
    for word in ("T = 20 moves", "8 columns per update", "actor → learner", "weights", "checkpoint", "free disk"):
        assert word in text, word


def test_only_images_are_learned_from_on_several_threads() -> None:
    rows = [line.split() for line in render(jobs.parse(PPO_PONG)).splitlines()]
    assert ["0", "worker", "0", "0", "0–7", "all", "cores", "CPU", "or", "GPU"] in rows


@pytest.mark.parametrize(
    ("id", "arguments", "words"),
    [
        (
            "Pendulum-v1",
            {},
            ["actions box [1], 1 scaled from −1..1 to -2..2", "ActorCritic: σ begins at 0.5", "MlpTorso: 3 numbers  "],
        ),
        (
            "ALE/Pong-v5",
            {"stack": 1},
            ["observation 84×84 uint8", "ConvTorso: images of 1×84×84 through the shallow network"],
        ),
        ("ALE/Pong-v5", {"size": 20}, ["MlpTorso: 1,600 numbers (images are bytes, 36 pixels or more a side)"]),
        (
            "show_spaces:make",
            {},
            ["observation 3×40×50 uint8", "images of 3×40×50 through", "2 handed on as they are, 1 scaled"],
        ),
    ],
)
def test_what_becomes_of_observations_and_actions(
    id: str, arguments: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "show_spaces.py").write_text(SPACES)
    monkeypatch.syspath_prepend(tmp_path)
    table = {"algorithm": "a2c", "topology": "solo", "a2c": {"network": "shallow", "initial_std": 0.5}}
    text = render(jobs.parse({**table, "environment": {"id": id, "arguments": arguments}}))
    for word in words:
        assert word in text, text


SPACES = """
import gymnasium, numpy as np
from gymnasium.spaces import Box

class make(gymnasium.Env):
    observation_space = Box(0, 255, (40, 50, 3), np.uint8)
    action_space = Box(np.array([-np.inf, 0, 0]), np.array([1, np.inf, 1000]), dtype=np.float64)
"""


def test_nodes_are_filled_one_after_the_other() -> None:
    rows = [line.split()[:4] for line in render(catch(), 2).splitlines()]
    assert ["1", "actor", "0", "0"] in rows and ["2", "actor", "1", "1"] in rows


def test_an_evaluator_has_a_row_a_message_and_memory() -> None:
    text = render(catch(resources={"ranks": 4, "evaluators": 1}, evaluate={"every_steps": 1000}))
    rows = [line.split() for line in text.splitlines()]
    assert ["3", "evaluator", "0", "0", "–", "1", "CPU"] in rows and "rank 0 → evaluator" in text
    assert any(row[:1] == ["evaluator"] for row in rows[rows.index(["3", "evaluator", "0", "0", "–", "1", "CPU"]) :])


def test_many_ranks_take_one_row() -> None:
    text = render(catch(environment={"id": "toy/catch", "columns": 128}, resources={"ranks": 65}))
    assert "1–64" in text and "0–127 (2 each)" in text and "actor ×64" in text


def test_one_rank_sends_nothing_and_records_nothing() -> None:
    table = {"algorithm": "ppo", "topology": "solo", "environment": {"id": "CartPole-v1"}, "output": {"record": 0.0}}
    text = render(jobs.parse(table))
    assert "a single rank needs no MPI" in text and "none recorded" in text and "segments" not in text


def padded(size: int) -> int:
    return -(-size // 64) * 64


def test_message_bytes_by_hand() -> None:
    """toy/catch: 10 × 5 floats, 3 actions; IMPALA over 64, 64: T = 20, 8 columns of each of two actors."""
    figures = gather(catch())
    rows = {"observation": 21 * 8 * 50 * 4, "first": 21 * 8, "action": 20 * 8 * 8, "version": 20 * 8 * 8}
    steps = 5 * [20 * 8 * 4] + [20 * 8 * 4]  # reward, discount, return, success, length; log_prob
    ends = [8 * 4, 8 * 8, 8 * 4, 8 * 8]  # column, start, attempt, closed
    assert figures.message_bytes == 64 + sum(map(padded, [*rows.values(), *steps, *ends]))
    parameters = 2 * (51 * 64 + 65 * 64) + 65 * 4
    assert figures.method.parameters == figures.method.weights == parameters
    assert figures.weights_message_bytes == 64 + padded(4 * parameters) + 64
    assert figures.step_bytes == 50 * 4 + 1 + 8 + 8 + 6 * 4
    assert figures.method.checkpoint_bytes == 4 * (3 * parameters + 1)  # Adam's two moments and its count of steps


def test_a_replay_by_hand() -> None:
    """One frame, first, action, reward, discount, version, start and gap of a row, and how long its item is."""
    table = {"algorithm": "dqn", "topology": "solo", "environment": {"id": "CartPole-v1", "columns": 4}}
    job = jobs.parse({**table, "dqn": {"unroll": 4, "capacity": 1000, "min_size": 100, "batch_size": 32, "n_step": 3}})
    figures = gather(job)
    row = 4 * 4 + 1 + 8 + 4 + 4 + 8 + 8 + 1 + 4
    assert figures.replay_bytes == (250 + 4 + 2) * 4 * row
    assert budget(figures, figures.plan.ranks[0])["replay"] == figures.replay_bytes
    text = render(job)
    assert "32 items of 3 moves per update, 8 drawn for each env step" in text
    assert "replay of 1,000 env steps, learning from 100 on" in text and "learner's target" in text
    assert figures.method.own["target"] == figures.method.parameters


def test_what_checkpoints_take_by_hand() -> None:
    """Those that are kept, one more while it is written, twice the best; and once the rows of the replay."""
    table = {"algorithm": "dqn", "topology": "allreduce", "environment": {"id": "CartPole-v1", "columns": 4}}
    table |= {"resources": {"ranks": 2}, "output": {"record": 0.0}, "checkpoint": {"keep": 3}}
    figures = gather(jobs.parse({**table, "dqn": {"capacity": 10**6}}))
    learner, replay = figures.method.checkpoint_bytes, figures.replay_bytes
    assert figures.replays_bytes == 2 * replay > 200 * learner
    text = render(figures.job)
    items = 4 * 10**6
    assert f"about {_size(4 * (learner + items) + 2 * replay + 2 * learner)} needed" in text
    assert f"; {_size(items)} of the replay's items, not in the best" in text
    first, second = (budget(figures, rank) for rank in figures.plan.ranks)
    assert (first["a checkpoint's copies"], second["a checkpoint's copies"]) == (replay, replay)
    alone = gather(jobs.parse({**table, "topology": "solo", "resources": {}, "dqn": {"capacity": 4 * 10**6}}))
    assert budget(alone, alone.plan.ranks[0])["a checkpoint's copies"] == 4 * PIECE_BYTES < alone.replay_bytes
    lost = render(jobs.parse({**table, "dqn": {"capacity": 10**6}, "checkpoint": {"keep": 3, "replay": False}}))
    assert f"about {_size(6 * learner)} needed" in lost and "not kept" in lost


def test_a_queue_of_fragments_has_memory_and_lies_in_checkpoints() -> None:
    plain, queue = (gather(catch(impala={"replay": share, "replay_columns": 10_000})) for share in (0.0, 0.5))
    row = 50 * 4 + 1 + 8 + 4 + 4 + 8 + 4 + 1  # observation, first, action, reward, discount, version, log_prob, finite
    each = 20 * row + 50 * 4 + 1 + 4 + 8 + 4  # one observation more; column, start, chance
    assert (plain.method.queue_bytes, queue.method.queue_bytes) == (0, 10_000 * each)
    learner = queue.plan.ranks[0]
    assert budget(queue, learner)["queue of fragments"] == 10_000 * each and plain.queues_bytes == 0
    assert f"; {_size(10_000 * each)} of queues" in render(queue.job)


def test_whole_episodes_are_named_and_the_last_games_counted() -> None:
    table = {"algorithm": "cem", "topology": "allreduce", "environment": {"id": "CartPole-v1", "columns": 4}}
    figures = gather(jobs.parse({**table, "resources": {"ranks": 2}}))
    assert "not counted: whole episodes, kept until every column has a complete one" in render(figures.job)
    assert "whole episodes, kept" not in render(catch())
    first, second = (budget(figures, rank) for rank in figures.plan.ranks)
    assert first["games that judge"] == 16 * ((16 << 10) + figures.method.act_bytes)
    assert "games that judge" not in second


# Largest resident memory in MiB of real runs on two cores (torch 2.13 for the CPU, MPICH 5.0).
MEASURED = [
    (CATCH, "learner", 292),
    (CATCH, "actor", 293),
    (PONG, "learner", 474),
    (PONG, "actor", 400),
    (PPO_PONG, "worker", 521),
    ({"algorithm": "ppo", "topology": "solo", "environment": {"id": "CartPole-v1", "columns": 8}}, "worker", 297),
]


@pytest.mark.parametrize(("table", "role", "measured"), MEASURED)
def test_memory_is_within_15_percent_of_measured_runs(table: dict[str, Any], role: str, measured: int) -> None:
    figures = gather(jobs.parse(table))
    rank = next(rank for rank in figures.plan.ranks if rank.role == role)
    assert sum(budget(figures, rank).values()) / MIB == pytest.approx(measured, rel=0.15)


def test_items_that_begin_with_a_long_burn_in_are_counted_whole() -> None:
    """A part of one may have no row that is learned from."""
    table = {"algorithm": "r2d2", "topology": "solo", "environment": {"id": "toy/tmaze", "columns": 1}}
    page = render(jobs.parse({**table, "r2d2": {"burn_in": 30, "length": 5, "lstm": 4, "hidden": [4]}}, "test"))
    assert "32 items of 35 moves per update" in page
