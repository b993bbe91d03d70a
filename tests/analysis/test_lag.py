"""Policy lag and its relation to return, on runs made by hand, against plain computations.

Mutations seen to fail: lag over the whole run instead of within stages; ties in the later half; updates that begin
before the replay has its minimum; a lag on topologies whose ranks act by what they just learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.analysis import open_runs
from hpc_rl.analysis.episodes import table
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.storage.run_dir import RunDir
from tests.analysis.recordings import COLUMNS, EPISODE, analysed, made, record, write_metrics

GAMES = 100
TOGETHER: dict[str, Any] = {"topology": "actor_learner", "resources": {"ranks": 3}}


def late_run(folder: Path, **job: Any) -> RunDir:
    """An update every ten env steps, which is a game of both columns. Lag and returns rise from tenth to tenth of
    training, and in the second half of each the lag is three more and the return one less."""
    run = made(folder, **{**TOGETHER, **job})
    game = np.arange(GAMES)
    tenth, late = game // 10, game % 10 >= 5
    version = np.maximum.accumulate(np.maximum(game + 1 - (1 + tenth + 3 * late), 0))
    record(run, 5.0 * tenth - late, version=version)
    steps = (10, GAMES * EPISODE * COLUMNS)
    lines = [{"step": s, "time": float(s), "updates": s / 10, "policy_lag": 2.0} for s in steps]
    write_metrics(run, lines, "learner-0" if run.path.name == "late" else "worker-0")
    return run


def test_lag_and_returns_against_a_plain_computation(tmp_path: Path) -> None:
    run = late_run(tmp_path / "late")
    games = table(open_runs([run.path]))
    section = analysed("lag", run.path)
    (row,) = section.tables["lag_runs"].itertuples()
    ended, lag, score = (games[name].to_numpy() for name in ("env_steps", "lag", "return"))
    assert row.lag_50 == np.median(lag) and row.lag_most == lag.max() > 8
    differences, weights = [], []
    for k in range(10):
        own = np.array([min(int(step * 10 / ended.max()), 9) == k for step in ended])
        less, more = (score[own & side] for side in (lag < np.median(lag[own]), lag > np.median(lag[own])))
        if min(len(less), len(more)) > 1:
            differences.append(more.mean() - less.mean())
            weights.append(len(less) + len(more))
    slow = np.average(differences, weights=weights)
    assert row.difference == pytest.approx(slow) and row.low <= slow <= row.high < 0
    assert row.correlation_without_stages > 0.3  # training hides it
    assert f"{abs(slow):.3g} less" in section.findings[0] and "no relation" not in section.findings[0]
    stages = section.tables["lag_stages"]
    assert stages["episodes"].sum() == len(games) and len(stages) == 10


def test_ranks_that_act_by_what_they_learned_have_no_lag(tmp_path: Path) -> None:
    run = late_run(tmp_path / "solo", topology="solo", resources={"ranks": 1})
    assert set(table(open_runs([run.path]))["lag"]) == {0}
    section = analysed("lag", run.path)
    assert not section.pictures and "no lag" in section.findings[0]


def test_nothing_is_learned_before_the_replay_has_its_minimum(tmp_path: Path) -> None:
    table_of = {"min_size": 200, "capacity": 1000, "batch_size": 8}
    run = made(tmp_path / "run", algorithm="dqn", topology="actor_replay_learner", resources={"ranks": 3}, dqn=table_of)
    record(run, [1.0] * 60)
    write_metrics(run, [{"step": 600, "time": 9.0, "updates": 400}], "learner-0")
    games = table(open_runs([run.path]))
    assert (games.loc[games["env_steps"] <= 200, "lag"] == 0).all()
    assert games["lag"].iloc[-1] == 400


def test_runs_without_updates_are_said(tmp_path: Path) -> None:
    run = made(tmp_path / "run", **TOGETHER)
    record(run, [1.0] * 60)
    with pytest.raises(NotRecorded, match="with a lag"):
        analysed("lag", run.path)
