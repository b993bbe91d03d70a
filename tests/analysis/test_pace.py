"""The job's env steps from a column's, against counting: columns that do not move alike, attempts, few versions.

Mutations seen to fail: the job's steps as the column's times columns (in the
episode table, too); segments' closes kept as knots; no scale for columns that were not recorded; versions of abandoned
moves counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis import episodes, open_runs
from hpc_rl.analysis.pace import job_steps, pace
from hpc_rl.storage.recorded import ends
from hpc_rl.types import Tree
from tests.analysis.histories import history, metrics, new_run, record, resumed, steps, valid


def counted(trees: list[Tree], version: int) -> int:
    """Moves that were made by versions before this one."""
    return sum(int((valid(tree) & (tree["version"] < version)).sum()) for tree in trees)


def test_columns_of_other_speed(tmp_path: Path) -> None:
    """Where a version begins, the job is at the number of moves by earlier ones, for every column."""
    run = new_run(tmp_path / "run", columns=3)
    fast, slow = history(0, 400, [0, 1], versions=20), history(1, 90, [2], versions=20)
    record(run, fast, [100, 250], role="actor", index=0)
    record(run, slow, [40], role="actor", index=1)
    (opened,) = open_runs([run.path])
    of_run = pace([ends(segment, opened.limits) for segment in opened.segments], 3)
    for tree in (fast, slow):
        for k, column in enumerate(tree["column"]):
            own = valid(tree)[:, k]
            version, step = tree["version"][own, k], steps(tree)[own, k]
            begins = np.flatnonzero(np.diff(version, prepend=-1))
            expected = [counted([fast, slow], int(v)) for v in version[begins]]
            found = job_steps(of_run, np.full(len(begins), column), step[begins])
            np.testing.assert_allclose(found, expected, atol=1)
    table = episodes([opened]).compute(scheduler="synchronous")
    for _, entry in table.iterrows():
        low, high = (counted([fast, slow], version) for version in (entry["version"], entry["version"] + 1))
        assert low - 1 <= entry["env_steps"] <= high + 1
    everything = counted([fast, slow], 99)
    assert job_steps(of_run, np.array([0, 2]), np.array([valid(fast)[:, 0].sum(), valid(slow).sum()])) == pytest.approx(
        [everything] * 2, abs=1
    )


def test_columns_that_were_not_recorded_move_like_the_mean(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", columns=4)
    tree = history(2, 200, [0, 1, 2, 3])
    record(run, tree, keep=[True, False, True, False])
    (opened,) = open_runs([run.path])
    of_run = pace([ends(segment, opened.limits) for segment in opened.segments], 4)
    last = valid(tree).sum(0)
    assert job_steps(of_run, np.array([2]), last[2:3])[0] == pytest.approx(2 * (last[0] + last[2]), abs=2)


@pytest.mark.parametrize("versions", [1, 5])
def test_episode_table(tmp_path: Path, versions: int) -> None:
    """Against loops over the history; one version only is no pace, but columns then move alike."""
    run = new_run(tmp_path / "run", topology="actor_learner", resources={"ranks": 3})
    tree = history(3, 120, [0, 1], versions=versions)
    paths = record(run, tree, [50], attempt=0)
    assert len(paths) == 2
    metrics(run, [(0, {"updates": 0}), (int(valid(tree).sum()), {"updates": 20 * versions})])
    table = episodes(open_runs([run.path])).compute(scheduler="synchronous")
    number, row_of = steps(tree), 0
    total = int(valid(tree).sum())
    for row in range(120):
        for k in (0, 1):
            if np.isnan(tree["episode_return"][row, k]):
                continue
            entry = table.iloc[row_of]
            row_of += 1
            length = int(tree["episode_length"][row, k])
            assert (entry["column"], entry["end"], entry["length"]) == (k, number[row, k] + 1, length)
            assert (entry["start"], entry["return"]) == (number[row, k] + 1 - length, tree["episode_return"][row, k])
            assert (entry["run"], entry["attempt"], entry["version"]) == ("run", 0, tree["version"][row, k])
            assert np.isnan(entry["success"])
            done = sum(int((valid(tree) & (np.arange(120)[:, None] <= row)).sum(0)[c]) for c in (0, 1))
            assert entry["env_steps"] == pytest.approx(done, abs=12)
            learned = np.floor(entry["env_steps"] / total * 20 * versions)
            assert entry["lag"] == max(learned - entry["version"], 0)
    assert row_of == len(table)


def test_abandoned_moves_have_no_episodes_and_no_pace(tmp_path: Path) -> None:
    """Two actors of other speed resume at version 8, of which the abandoned moves of the first attempt know more."""
    run = new_run(tmp_path / "run")
    old = [history(4, 160, [0], versions=16), history(5, 40, [1], versions=16)]
    resume = {k: int((valid(tree) & (tree["version"] < 8)).sum()) for k, tree in enumerate(old)}
    new = [history(6 + k, moves, [k], versions=16, start=resume[k]) for k, moves in enumerate((40, 160))]
    for k in (0, 1):
        new[k]["version"][:] += 8
        record(run, old[k], role="actor", index=k)
        record(run, new[k], attempt=1, role="actor", index=k)
    resumed(run, 1, resume)
    table = episodes(open_runs([run.path])).compute(scheduler="synchronous")
    kept = [valid(tree) & (steps(tree) < resume[k]) for k, tree in enumerate(old)] + [valid(tree) for tree in new]
    trees = [*old, *new]
    ended = [(own & (tree["episode_length"] > 0)).sum() for own, tree in zip(kept, trees, strict=True)]
    assert [int((table.attempt == a).sum()) for a in (0, 1)] == [sum(ended[:2]), sum(ended[2:])]
    for _, entry in table.iterrows():
        low, high = (
            sum(int((own & (tree["version"] < v)).sum()) for own, tree in zip(kept, trees, strict=True))
            for v in (entry["version"], entry["version"] + 1)
        )
        assert low - 1 <= entry["env_steps"] <= high + 1
