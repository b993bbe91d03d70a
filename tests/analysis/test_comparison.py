"""The comparison of settings on runs made by hand, against plain computations.

Mutations seen to fail: the last score of each run's own end; the comparison not ended by a running run; η² over the
number of values; scores of an environment not scaled to its worst run; settings that divide runs alike listed twice;
a target return that parts the seeds of a setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.analysis.sections import NotRecorded
from tests.analysis.recordings import COLUMNS, EPISODE, analysed, made, program, record

LEVEL = {0.001: (1.0, 2.0, 4.0), 0.01: (3.0, 5.0, 8.0)}  # learning rate -> what its three runs play in the end


def runs(folder: Path, id: str = "toy/catch", scale: float = 1.0, games: int = 80) -> list[Path]:
    """Six runs of two learning rates and, as it were, two numbers of passes that go with them; all end otherwise."""
    paths = []
    for rate, levels in LEVEL.items():
        for seed, level in enumerate(levels):
            table = {"learning_rate": rate, "entropy_cost": rate / 2, "batch_columns": 0}
            ends = {"stop_at_return": 900.0 + seed, "time_limit_s": 60.0 * (1 + seed)}
            run = made(folder / f"{id[-3:]}-{rate}-{seed}", {"id": id}, seed=seed, impala=table, budget=ends)
            record(run, scale * level * np.linspace(0, 1, games))
            run.write_state(state="done")
            paths.append(run.path)
    return paths


def slow_scores(level: float, games: int = 80, end: int = 80) -> tuple[float, float]:
    """Last and mean running mean of 100 games over env steps 0 to ``end`` episodes of every column."""
    scores = np.repeat(level * np.linspace(0, 1, games), COLUMNS)
    steps = np.repeat(np.arange(1, games + 1) * EPISODE * COLUMNS, COLUMNS)
    means = np.array([scores[max(0, i - 99) : i + 1].mean() for i in range(len(scores))])
    grid = np.linspace(0, end * EPISODE * COLUMNS, 1001)
    begin = min(99, len(means) // 10)
    values = [np.interp(x, steps[begin:], means[begin:]) for x in grid]
    return values[-1], float(np.mean(values))


def test_groups_against_a_plain_computation(tmp_path: Path) -> None:
    section = analysed("comparison", *runs(tmp_path))
    table = section.tables["comparison_runs"]
    for row in table.itertuples():
        rate, seed = row.run.split("-")[1:]
        assert (row.last, row.mean) == pytest.approx(slow_scores(LEVEL[float(rate)][int(seed)]))
    rows = {(x.group, x.score): x for x in section.tables["comparison_groups"].itertuples()}
    assert {name for name, _ in rows} == {"learning_rate 0.001", "learning_rate 0.01"}
    best = [slow_scores(level)[0] for level in LEVEL[0.01]]
    assert rows["learning_rate 0.01", "last"].iqm == pytest.approx(np.mean(best))  # of three runs the mean
    (last, _) = section.tables["comparison_with_the_best"].itertuples()
    slow = np.mean([x > y for x in LEVEL[0.01] for y in LEVEL[0.001]])
    assert (last.best, last.probability) == ("learning_rate 0.01", pytest.approx(slow))
    assert last.low <= slow <= last.high


def test_effects_of_settings(tmp_path: Path) -> None:
    section = analysed("comparison", *runs(tmp_path))
    table = section.tables["comparison_settings"]
    (row,) = table[table["score"] == "last"].itertuples()
    assert row.setting == "impala.learning_rate (and 1 alike)"
    scores = {rate: np.array([slow_scores(level)[0] for level in levels]) for rate, levels in LEVEL.items()}
    every = np.concatenate(list(scores.values()))
    between = sum(3 * (own.mean() - every.mean()) ** 2 for own in scores.values())
    assert row.share_of_variance == pytest.approx(between / ((every - every.mean()) ** 2).sum())
    assert (row.best, row.difference) == ("0.01", pytest.approx(scores[0.01].mean() - scores[0.001].mean()))


def test_environments_are_strata(tmp_path: Path) -> None:
    """Their returns are not alike: by themselves, and all of them scaled to the worst and the best run of each."""
    section = analysed("comparison", *runs(tmp_path), *runs(tmp_path, "CartPole-v1", scale=100.0))
    assert section.tables["comparison_runs"].groupby("environment").size().tolist() == [6, 6]
    assert any("not alike" in sentence for sentence in section.findings)
    groups = section.tables["comparison_groups"]
    every = groups[groups["environment"].str.startswith("all") & (groups["score"] == "last")]
    scaled = {rate: (np.array(own) - 1) / 7 for rate, own in LEVEL.items()}
    for row in every.itertuples():
        own = np.sort(np.tile(scaled[float(row.group.split()[-1])], 2))
        assert row.iqm == pytest.approx(own[1:5].mean()) and row.runs == 6


def test_a_run_that_goes_on_ends_the_comparison(tmp_path: Path) -> None:
    paths = runs(tmp_path)
    run = made(tmp_path / "short", impala={"learning_rate": 0.001, "entropy_cost": 0.0005, "batch_columns": 0})
    record(run, [1.0] * 30)
    section = analysed("comparison", *paths, run.path)
    assert set(section.tables["comparison_runs"]["env_steps"]) == {30 * EPISODE * COLUMNS}
    assert any("short is not done" in sentence for sentence in section.findings)
    for row in section.tables["comparison_runs"].itertuples():
        if row.run != "short":
            rate, seed = row.run.split("-")[1:]
            expected = slow_scores(LEVEL[float(rate)][int(seed)], end=30)
            assert (row.last, row.mean) == pytest.approx(expected)


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotRecorded, match="nothing but seeds"):
        analysed("comparison", *runs(tmp_path)[:3])
    other = made(tmp_path / "other", {"id": "CartPole-v1"}, algorithm="ppo")
    record(other, [1.0] * 30)
    with pytest.raises(NotRecorded, match="same environment"):
        analysed("comparison", *runs(tmp_path / "b")[:3], other.path)


@pytest.mark.parametrize(
    ("values", "order"), [(["10", "9", "absent"], ["9", "10", "absent"]), (["b", "a"], ["a", "b"])]
)
def test_values_stand_in_their_order(values: list[str], order: list[str]) -> None:
    number: Any = program("comparison")._number
    assert sorted(values, key=number) == order
