"""The learning-curve program on segments made by hand.

Mutations seen to fail: the window of 99 games; a target without 100 games behind it; columns of a mixture shared out in
blocks; abandoned episodes counted; a run that is done not held; the line not ended where a running one ends; hours
without start-up; successes of games that tell none counted as failures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.analysis import open_runs, programs
from hpc_rl.analysis.scores import band, running_mean, training
from tests.analysis.recordings import (
    COLUMNS,
    EPISODE,
    SPEC,
    analysed,
    made,
    program,
    record,
    write_metrics,
    write_provenance,
)

PROGRAM = jobs.data_folder("analysis") / "learning_curve.py"


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_pictures_and_tables_leave_out_abandoned_steps(tmp_path: Path) -> None:
    """As a user calls it: what of an attempt was made again does not count."""
    run = made(tmp_path / "mine")
    record(run, [0.0] * 60 + [-99.0] * 20)  # the last twenty were made again
    record(run, [20.0] * 60, 60 * EPISODE, attempt=1)
    write_provenance(run, 0, 900.0)
    write_provenance(run, 1, 5000.0, {c: 60 * EPISODE for c in range(COLUMNS)})
    first = [{"step": step, "time": 1000.0 + step, "attempt": 0} for step in (100, 600, 800)]
    later = [{"step": step, "time": 5000.0 + step, "attempt": 1, "attempt_from": 600} for step in (800, 1200)]
    write_metrics(run, [*first, *later])
    process = run_program(run.path, "--out", tmp_path / "out", "--target", 15)
    assert process.returncode == 0, process.stderr
    names = {"learning_curve.json", "learning_curve.png", "learning_curve_by_wall_clock.png",
             "learning_curve_groups.csv", "learning_curve_runs.csv"}  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads((tmp_path / "out" / "learning_curve.json").read_text())["tables"]["learning_curve_runs"]
    assert (row["run"], row["games"], row["env_steps"], row["last_100"]) == ("mine", 240, 1200, 20.0)
    # 75 of 100 games at 20: 38 games of both columns into the second attempt.
    assert row["target_training"] == (60 + 38) * EPISODE * COLUMNS
    assert row["hours"] == pytest.approx((900 + 1200) / 3600)  # 0 to 800 after 900 s, then 1200 s of the second attempt
    assert "reached by 1" in process.stdout


def test_success_stands_beside_the_return(tmp_path: Path) -> None:
    """Of training games that tell it and of evaluations; a run whose environment tells none has no such picture."""
    run = made(tmp_path / "goals")
    success = np.full((150 * (EPISODE + 1), COLUMNS), np.nan, np.float32)
    ends = np.arange(150) * (EPISODE + 1) + EPISODE - 1
    success[ends, 0] = np.arange(150) >= 75  # the other column's environment tells none
    record(run, [-1.0] * 150, leaves={"episode_success": success})
    lines = [{"env_steps": step, "step": step, "time": 1.0 * step, "greedy_return": -1.0} for step in (100, 1500)]
    write_metrics(run, [{**line, "greedy_success": 0.5 + k / 4} for k, line in enumerate(lines)])
    section = analysed("learning_curve", run.path)
    assert {"success_of_training_games", "success_of_greedy_games"} <= section.pictures.keys()
    (row,) = section.tables["learning_curve_runs"].to_dict("records")
    assert (row["success_100"], row["greedy_success"], row["last_100"]) == (0.75, 0.75, -1.0)
    scores = section.tables["learning_curve_groups"].set_index("score")["iqm"]
    assert scores["training success"] == scores["greedy success"] == 0.75
    assert any("success 0.75 in the last 100 training games" in sentence for sentence in section.findings)
    plain = made(tmp_path / "plain")
    record(plain, [1.0] * 10)
    section = analysed("learning_curve", plain.path)
    assert not [name for name in section.pictures if name.startswith("success")]
    assert np.isnan(section.tables["learning_curve_runs"]["success_100"][0])


def test_running_mean_and_target(tmp_path: Path) -> None:
    returns = np.arange(6.0)
    slow = [returns[max(0, i - 2) : i + 1].mean() for i in range(6)]
    assert running_mean(returns, 3) == pytest.approx(slow)
    for games, reached in ((49, np.nan), (75, 100 * EPISODE)):
        run = made(tmp_path / str(games))
        record(run, [20.0] * games)
        (curve,) = training(open_runs([run.path]))
        assert curve.reached(18) == pytest.approx(reached, nan_ok=True)  # not before 100 games


def test_a_mixture_has_a_curve_for_each_environment(tmp_path: Path) -> None:
    ids = ["CartPole-v1", "CartPole-v0"]
    run = made(tmp_path / "two", {"id": "mixture", "columns": 4, "arguments": {"ids": ids}})
    record(run, [[1.0, 2.0, 3.0, 4.0]] * 3, columns=range(4))
    first, second = training(open_runs([run.path]))
    assert (first.environment, second.environment) == tuple(ids)
    assert (first.scores[1], second.scores[1]) == (2.0, 3.0)
    assert (first.total, second.total, first.steps[-1]) == (6, 6, 3 * EPISODE * 4)
    section = analysed("learning_curve", run.path)
    assert section.tables["learning_curve_runs"]["environment"].tolist() == ids


def test_a_curve_over_seeds_is_that_of_a_plain_computation(tmp_path: Path) -> None:
    """Interquartile mean of interpolated running means; a run that is done keeps its last score."""
    draw = np.random.default_rng(3)
    scores = [draw.normal(size=n) for n in (30, 40, 60, 60, 60)]
    for k, own in enumerate(scores):
        run = made(tmp_path / str(k), seed=k)
        record(run, own)
        run.write_state(state="done")
    runs = open_runs([tmp_path / str(k) for k in range(5)])
    curves = training(runs)
    result = band(curves, [curve.steps for curve in curves])
    assert (result.x[-1], result.whole) == (60 * EPISODE * COLUMNS, 30 * EPISODE * COLUMNS)
    for at in (0, 77, 150, 199):
        x, means = result.x[at], []
        for own in scores:
            games = np.repeat(own, COLUMNS)
            steps = np.repeat(np.arange(1, len(own) + 1) * EPISODE * COLUMNS, COLUMNS)
            mean = [games[max(0, i - 99) : i + 1].mean() for i in range(len(games))]
            means.append(np.interp(x, steps, mean))
        assert result.middle[at] == pytest.approx(np.mean(sorted(means)[1:4]))
        assert min(means) <= result.low[at] <= result.middle[at] <= result.high[at] <= max(means)
    (tmp_path / "1" / "state.json").unlink()  # pending: it may go on
    curves = training(open_runs([tmp_path / str(k) for k in range(5)]))
    assert band(curves, [curve.steps for curve in curves]).x[-1] == 40 * EPISODE * COLUMNS


def test_greedy_games_and_frames(tmp_path: Path) -> None:
    from dataclasses import replace

    run = made(tmp_path / "run", budget={"stop_at_return": 9.0})
    record(run, [1.0] * 60, spec=replace(SPEC, action_repeat=4))
    lines = [{"step": s, "time": 10.0 * s, "greedy_return": g} for s, g in ((100, None), (200, 3.0), (400, 9.0))]
    write_metrics(run, lines)
    section = analysed("learning_curve", run.path)
    (row,) = section.tables["learning_curve_runs"].itertuples()
    assert (row.greedy, row.target_greedy, row.frames) == (9.0, 400, 4 * 60 * EPISODE * COLUMNS)
    assert np.isnan(row.target_training) and "greedy_evaluations" in section.pictures


def test_a_run_without_recorded_columns_has_the_curve_of_its_metrics(tmp_path: Path) -> None:
    run = made(tmp_path / "run", output={"record": 0.0})
    write_metrics(
        run, [{"step": 10 * k, "time": 1.0 * k, "mean_return_100": 2.0 * k, "episodes": k} for k in range(1, 200)]
    )
    section = analysed("learning_curve", run.path, target=300.0)
    (row,) = section.tables["learning_curve_runs"].itertuples()
    assert (row.last_100, row.env_steps, row.target_training) == (398.0, 1990, 1500)
    assert any("no recorded episodes" in sentence for sentence in section.findings)


@pytest.mark.parametrize("case", ["absent", "empty"])
def test_errors_are_one_sentence(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "empty":
        made(tmp_path / "empty")
    monkeypatch.setattr("sys.argv", ["learning_curve.py", str(tmp_path / case)])
    with pytest.raises(SystemExit, match=f"error: {tmp_path / case}[^\\n]*$"):
        programs.main(program("learning_curve").analyze, "Curves.")
