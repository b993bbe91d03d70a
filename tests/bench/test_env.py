"""`hpc-rl bench env` measures what it says and draws it; what it measures is nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.bench import env
from hpc_rl.bench.pieces import pieces
from hpc_rl.config import BadJob


def test_a_device_sampler_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "BLOCKS", 1)
    rows = env.measure(jobs.load("ppo_cartpole_device", ["ppo.hidden=[8]"]), (3, 8), 0.001)
    assert [row.columns for row in rows] == [3, 8]
    assert all(min(row.step, row.infer, row.train) > 0 for row in rows)
    assert env.render(rows).count("\n") == 2
    env.plot(rows, "a title", tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


def test_without_training_that_column_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "BLOCKS", 1)
    (row,) = env.measure(jobs.load("ppo_pendulum_device", ["ppo.unroll=16"]), (2,), 0.001, training=False)
    assert row.train == 0 and "-" in env.render([row])


def test_what_a_replay_has_learned_from_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "BLOCKS", 1)
    (row,) = env.measure(
        jobs.load("dqn_cartpole", ["sampler=device", "environment.id=toy/cartpole", "environment.arguments={}"]),
        (2,),
        0.001,
    )
    assert row.step > 0 and row.infer > 0 and row.train == 0


def test_another_sampler_is_refused() -> None:
    with pytest.raises(BadJob, match='measures sampler = "device", and this job has "vector"'):
        env.measure(jobs.load("ppo_cartpole", []), (2,), 0.001)


def test_the_roofline_steps_tensors() -> None:
    with pieces(jobs.load("ppo_cartpole_device", ["environment.columns=8", "ppo.hidden=[8]"])) as parts:
        assert 8 * 32 >= parts.work["env"]() > 200 and parts.work["infer"]() == 8
