"""Replay over training, from metrics made by hand.

Mutations seen to fail: inserted steps without the minimum left out; only the first rank's losses; env steps of ranks
that have none of their own; lines of abandoned work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis.sections import NotRecorded
from tests.analysis.recordings import analysed, made, write_metrics

TABLE = {"batch_size": 10, "min_size": 100, "capacity": 1000, "samples_per_insert": 2.0, "priority_exponent": 0.5}
RANKS = {"ranks": 4, "replays": 2}


def replay_line(time: float, scale: float, **more: float) -> dict[str, float | None]:
    leaves = {"age": 100.0, "priority": 0.1, "chance": 5.0}
    figures = {f"replay/{leaf}_{q}": value * scale * q for leaf, value in leaves.items() for q in (10, 50, 90)}
    return {"step": 0, "time": time, "replay/dropped": 0.0, "replay/rejected": 0.0, **figures, **more}


def test_quantiles_and_draws_against_a_plain_computation(tmp_path: Path) -> None:
    """Two ranks without env steps of their own; the learner makes 20 a second, and updates for 1.9 draws of each."""
    run = made(tmp_path / "run", algorithm="dqn", topology="actor_replay_learner", resources=RANKS, dqn=TABLE)
    updates = [max(0.0, (20 * t - 100) * 1.9 / 10) for t in range(101)]
    clock = [{"step": 20 * t, "time": float(t), "updates": updates[t]} for t in range(101)]
    write_metrics(run, clock, "learner-0")
    times, scales = np.arange(6.0, 100.0, 2.5), np.linspace(1, 3, 38)
    for rank, factor in (("replay_server-0", 1.0), ("replay_server-1", 2.0)):
        own = [replay_line(t, s * factor) for t, s in zip(times, scales, strict=True)]
        own[-1] |= {"replay/dropped": 3.0 * factor, "replay/rejected": 1.0}
        write_metrics(run, own, rank)
    section = analysed("replay", run.path)
    (row,) = section.tables["replay_runs"].itertuples()
    assert row.drawn_per_insertion == pytest.approx(1.9) and row.deviation == pytest.approx(-0.05)
    assert (row.dropped, row.rejected, row.setting) == (9, 2, 2.0)
    newest = scales[times * 20 >= 1800]
    assert row.age_90 == pytest.approx(1.5 * 100 * 90 * newest.mean())  # of both ranks
    for stage in section.tables["replay_stages"].itertuples():
        own = scales[[min(int(t * 20 * 10 / 2000), 9) == stage.stage for t in times]]
        assert (stage.age_10, stage.chance_50) == pytest.approx((1500 * own.mean(), 375 * own.mean()))
    assert "9 priorities dropped and 2 priorities rejected" in section.findings[0]


def test_a_uniform_replay_in_process(tmp_path: Path) -> None:
    """Its figures are in the lines of rank 0; what was made again does not count."""
    run = made(tmp_path / "run", algorithm="dqn", topology="solo", dqn={**TABLE, "priority_exponent": 0.0})
    ages = {f"replay/age_{q}": float(q) for q in (10, 50, 90)}
    first = [{"step": s, "time": float(s), "updates": 0.2 * (s - 100), **ages} for s in (200, 400)]
    lost = [{"step": 600, "time": 600.0, "updates": 100.0, **dict.fromkeys(ages, 9e9)}]
    later = [{"step": 600, "time": 900.0, "updates": 100.0, "attempt": 1, "attempt_from": 400, **ages}]
    write_metrics(run, [*first, *lost, *later])
    section = analysed("replay", run.path)
    (row,) = section.tables["replay_runs"].itertuples()
    assert (row.age_50, row.drawn_per_insertion, row.setting) == (50, pytest.approx(2.0), 2.0)
    assert set(section.tables["replay_stages"]["age_90"]) == {90.0}
    assert "no priority was lost" in section.findings[0]


def test_a_run_without_replay_is_said(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    write_metrics(run, [{"step": 10, "time": 1.0}])
    with pytest.raises(NotRecorded, match="no metrics of a replay"):
        analysed("replay", run.path)
