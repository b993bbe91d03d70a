"""A run of N and then N env steps ends with the bits of a run of 2N, its replay included; or it begins a new replay.

Mutations seen to fail: min_size forgotten; no word at the first checkpoint, or where the run is resumed; a replay taken
up in spite of checkpoint.replay = false.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.runtime.stores import lost_at_resume
from tests.contract.seats import Ran, newest, replays, run_job

DQN = {
    "unroll": 4,
    "n_step": 3,
    "capacity": 400,
    "min_size": 200,
    "batch_size": 8,
    "samples_per_insert": 2.0,
    "priority_exponent": 0.6,
}
R2D2 = {"burn_in": 2, "length": 4, "stride": 3, "n_step": 2, "lstm": 4, "hidden": [8]}
METHODS: dict[str, dict[str, Any]] = {  # nothing is annealed: the halves have another budget than the whole
    "dqn": {**DQN, "target_every": 7, "hidden": [16], "epsilon_final": 0.3, "epsilon_fraction": 0.0},
    "r2d2": {**DQN, **R2D2, "target_every": 7},
    "hdqn": {
        "unroll": 4,
        "option_limit": 6,
        "capacity": 400,
        "min_size": 200,
        "batch_size": 8,
        "meta_batch_size": 4,
        "samples_per_insert": 2.0,
        "hidden": [16],
        "epsilon_final": 0.3,
        "epsilon_fraction": 0.0,
        "meta_epsilon_fraction": 0.0,
    },
    "cem": {"unroll": 3},
    "hiro": {"unroll": 4, "interval": 5, "capacity": 400, "min_size": 200, "batch_size": 8, "low_steps": 3,
             "samples_per_insert": 0.5, "candidates": 4, "hidden": [8], "noise_fraction": 0.0},
    "hac": {"unroll": 4, "levels": 3, "horizon": 2, "capacity": 400, "min_size": 200, "batch_size": 8,
            "samples_per_insert": 2.0, "hidden": [16]},
    "alphazero": {"unroll": 4, "simulations": 8, "temperature_moves": 3, "capacity": 400, "min_size": 100,
                  "batch_size": 16, "samples_per_insert": 2.0, "blocks": 0, "hidden": [16]},
}  # fmt: skip
BOXES = {  # of methods that toy/catch does not suit
    "hiro": {"id": "toy/point_maze", "arguments": {"steps": 13}},
    "hac": {"id": "toy/goal_pendulum", "arguments": {"limit": 11}},
    "alphazero": {"id": "toy/tictactoe"},
}
HALF = 300


def table_of(name: str, ranks: int, env_steps: int) -> dict[str, Any]:
    return {
        "algorithm": name,
        "topology": "solo" if ranks == 1 else "allreduce",
        "environment": {**BOXES.get(name, {"id": "toy/catch"}), "columns": 4},
        "budget": {"env_steps": env_steps},
        "resources": {"ranks": ranks, "threads": 1, "precision": "fp32"},
        name: METHODS[name],
    }


def last(job_run: Ran) -> tuple[Any, dict[str, Any]]:
    """State, with the contents of the files that it names, and meta of the last checkpoint."""
    state, meta = newest(job_run)
    rings = any("file" in part for part in state["stores"])
    return {**state, "stores": replays(job_run)} if rings else state, meta


def differing(one: Any, other: Any, key: str = "state") -> list[str]:
    """Keys of nested states that are not the same bits."""
    if isinstance(one, dict):
        same = one.keys() == other.keys()
        return [x for name in one for x in differing(one[name], other[name], f"{key}/{name}")] if same else [key]
    if isinstance(one, list):
        same = len(one) == len(other)
        return [x for k, pair in enumerate(zip(one, other, strict=same)) for x in differing(*pair, f"{key}/{k}")]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes() else [key]
    return [] if one == other else [key]


# Ranks are threads of one torch generator, from which critics are made once all have started: BOXES are on one only.
CASES = [(name, ranks) for name in METHODS for ranks in (1, 2) if ranks == 1 or name not in BOXES]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_two_halves_equal_the_whole_bitwise(name: str, ranks: int, tmp_path: Path) -> None:
    begun = run_job(table_of(name, ranks, HALF), tmp_path / "half")
    two, two_meta = last(run_job(table_of(name, ranks, 2 * HALF), tmp_path / "two", resume=begun))
    half = last(begun)
    one, one_meta = last(run_job(table_of(name, ranks, 2 * HALF), tmp_path / "one"))
    assert one_meta["env_steps"] == two_meta["env_steps"] >= 2 * HALF > half[1]["env_steps"] - 50
    assert one_meta["updates"] == two_meta["updates"] > half[1]["updates"] > 3
    assert any(key.startswith("state/stores") for key in differing(one, half[0]))
    assert differing(one, two) == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_episodes_go_on_with_other_ranks_as_if_nothing_had_been(before: int, after: int, tmp_path: Path) -> None:
    """The cross-entropy method does not depend on how columns are dealt out, so neither may a restart."""
    begun = run_job(table_of("cem", before, HALF), tmp_path / "half")
    two, two_meta = last(run_job(table_of("cem", after, 2 * HALF), tmp_path / "two", resume=begun))
    half = last(begun)
    one, one_meta = last(run_job(table_of("cem", 1, 2 * HALF), tmp_path / "one"))
    assert two_meta["updates"] == one_meta["updates"] > half[1]["updates"] > 3
    assert torch.equal(one["weights"], two["weights"])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_ring_goes_on_with_other_ranks(before: int, after: int, tmp_path: Path) -> None:
    """Nothing that was replayed is lost, and the limiter goes on: the run makes as many updates as any other."""
    half = run_job(table_of("dqn", before, HALF), tmp_path / "half")
    state, meta = last(run_job(table_of("dqn", after, 2 * HALF), tmp_path / "two", resume=half))
    assert len(newest(half)[0]["stores"]) == before and len(state["stores"]) == after
    inserted = torch.cat([part["env_steps"] for part in state["stores"]])
    assert inserted.tolist() == list(meta["steps"].values()) and int(inserted.sum()) == meta["env_steps"]
    allowed = (meta["env_steps"] - DQN["min_size"]) * DQN["samples_per_insert"] / DQN["batch_size"]
    assert allowed - 2 <= meta["updates"] <= allowed


def changed(table: dict[str, Any], replay: bool) -> dict[str, Any]:
    return {**table, "checkpoint": {"replay": replay}}


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_run_without_its_replay_fills_it_again_before_it_learns(
    before: bool, after: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its updates are those of the env steps behind the first min_size of this attempt: none is made up for."""
    half = run_job(changed(table_of("dqn", 1, HALF), before), tmp_path / "half")
    warnings = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    lost = "makes 200 env steps before its first update"
    sentence = f"warning: checkpoints hold no replay (checkpoint.replay = false); a resumed run {lost}"
    assert warnings == ([] if before else [sentence])
    assert (half.run.checkpoints / "replay").exists() == before
    begun = newest(half)[1]
    ran = run_job(changed(table_of("dqn", 1, 2 * HALF), after), tmp_path / "two", resume=half)
    meta = newest(ran)[1]
    steps = meta["env_steps"] - begun["env_steps"]
    allowed = (steps - DQN["min_size"]) * DQN["samples_per_insert"] / DQN["batch_size"]
    assert allowed - 1 <= meta["updates"] - begun["updates"] <= allowed
    assert sum(len(part["column"]) for part in replays(ran)) == 4 * after


@pytest.mark.parametrize(
    ("keys", "stores", "words"),
    [
        ({}, [{"file": "a0-c0-s1.h5"}], ""),
        ({"replay": False}, [{"file": "a0-c0-s1.h5"}], "lost .checkpoint.replay = false.; this one makes 200 env"),
        ({}, [{}], "lost .the checkpoint holds none.; this one makes 200 env steps before its first update"),
    ],
)
def test_what_is_lost_is_said_where_a_run_is_resumed(keys: dict[str, Any], stores: list[Any], words: str) -> None:
    job = jobs.parse({**table_of("dqn", 1, HALF), "checkpoint": keys}, "test")
    said = lost_at_resume(job, agent_of(job).experience, {"stores": stores})
    assert re.search(words, said) and bool(said) == bool(words)
