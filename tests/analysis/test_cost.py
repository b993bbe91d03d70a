"""What a score cost, on runs made by hand, against plain computations.

Mutations seen to fail: the cost of a run that never came so far left out of the median; the last instead of the first
time; hours that begin with the first metric line; one core for all; cores of the last attempt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.storage.run_dir import write_json
from tests.analysis.recordings import COLUMNS, EPISODE, analysed, made, record, write_metrics, write_provenance

BEST = (12.34, 20.71, 8.17)  # of three seeds, reached linearly over 200 episodes of each column, and lost again


def runs(folder: Path, ranks: int = 1) -> list[Path]:
    """One env step takes 10 s; the first attempt began 500 s before its first metric line, at env step 100."""
    paths = []
    for seed, best in enumerate(BEST):
        place = {"topology": "allreduce", "algorithm": "a2c", "resources": {"ranks": ranks, "threads": 2}}
        run = made(folder / str(seed), seed=seed, budget={"stop_at_return": 10.03}, **place)
        record(run, [*np.linspace(0, best, 200), *[0.0] * 100])
        write_provenance(run, 0, 1000.0)
        write_metrics(run, [{"step": step, "time": 500.0 + 10.0 * step} for step in (100, 1000, 3000)])
        paths.append(run.path)
    return paths


def slow_cost(best: float, goal: float) -> tuple[float, float]:
    """Env steps and hours until the mean of 100 games first was ``goal``."""
    games = np.repeat([*np.linspace(0, best, 200), *[0.0] * 100], COLUMNS)
    for k in range(99, len(games)):
        if games[k - 99 : k + 1].mean() >= goal:
            step = (k // COLUMNS + 1) * EPISODE * COLUMNS
            return step, (500.0 + 10.0 * step - 1000.0) / 3600
    return np.nan, np.nan


def test_costs_against_a_plain_computation(tmp_path: Path) -> None:
    section = analysed("cost", *runs(tmp_path, ranks=2))
    table = section.tables["cost_runs"]
    assert table["return"].nunique() == 5 and 10.03 in set(table["return"])
    for row in table.to_dict("records"):
        steps, hours = slow_cost(BEST[int(row["run"])], row["return"])
        assert row["env_steps"] == pytest.approx(steps, nan_ok=True)
        assert row["hours"] == pytest.approx(hours, nan_ok=True)
        assert row["core_hours"] == pytest.approx(4 * hours, nan_ok=True)
        assert row["gpu_hours"] == pytest.approx(0 * hours, nan_ok=True)
    for row in section.tables["cost_groups"].to_dict("records"):
        hours = [slow_cost(best, row["return"])[1] for best in BEST]
        reached = sum(np.isfinite(hours))
        middle = np.nan if reached < 2 else np.sort(hours)[1]  # NaN is sorted to the end
        assert (row["runs"], row["reached"]) == (3, reached)
        assert row["core_hours"] == pytest.approx(4 * middle, nan_ok=True)
    assert any("Energy is not known" in sentence for sentence in section.findings)


def test_one_target(tmp_path: Path) -> None:
    table = analysed("cost", *runs(tmp_path), target=7.0).tables["cost_runs"]
    assert 7.0 in set(table["return"]) and 10.03 not in set(table["return"])


def test_a_run_that_never_got_better_is_said(tmp_path: Path) -> None:
    run = made(tmp_path / "flat")
    record(run, [0.0] * 300)
    write_metrics(run, [{"step": step, "time": 500.0 + 10.0 * step} for step in (100, 1000, 3000)])
    section = analysed("cost", run.path)
    assert any("no return was better than those that the runs began with" in x for x in section.findings)
    assert not len(section.tables["cost_runs"]) and not len(section.tables["cost_groups"])


def test_a_run_without_a_clock_is_said(tmp_path: Path) -> None:
    path, *_ = runs(tmp_path)
    other = made(tmp_path / "other", seed=9)
    record(other, [1.0] * 60)
    assert any("other: no metrics" in sentence for sentence in analysed("cost", path, other.path).findings)
    with pytest.raises(NotRecorded, match="what they cost"):
        analysed("cost", other.path)


def test_what_the_run_was_given_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts of other sizes count by their hours; energy is SLURM's, over all hours."""
    path = runs(tmp_path)[1]
    entry = {"ready": None, "memory_bytes": 1, "asked_of": "SLURM", "cpu_s": 0.0, "peak_rss_bytes": 0, "again_s": 0.0}
    first = {**entry, "attempt": 0, "start": 0.0, "end": 3600.0, "cores": 8, "gpus": 0}
    later = {**entry, "attempt": 1, "start": 5000.0, "end": 5000.0 + 3 * 3600, "cores": 4, "gpus": 2}
    write_json(path / "usage.json", {"attempts": [first, later]})
    monkeypatch.setattr("hpc_rl.launchers.accounting.consumed", lambda ids: {"energy_j": 7.2e6})
    section = analysed("cost", path, target=10.03)
    (given,) = section.tables["cost_resources"].itertuples()
    assert (given.cores, given.gpus, given.kilowatts, given.source) == (5.0, 1.5, 0.5, "SLURM")
    for row in section.tables["cost_runs"].itertuples():
        assert row.core_hours == pytest.approx(5 * row.hours, nan_ok=True)
        assert row.kwh == pytest.approx(0.5 * row.hours, nan_ok=True)
    assert not any("Energy" in sentence for sentence in section.findings)
