"""Runs as an analysis opens them: what cannot be read or is not there is said, the rest is used.

Mutations seen to fail: gaps looked for before abandoned stretches, too; a torn file raised.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from hpc_rl.analysis import episodes, open_runs
from hpc_rl.storage.run_dir import BadRun
from tests.analysis.histories import history, new_run, record, resumed, steps, valid


def test_a_gap_between_segments_is_said_by_columns(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(0, 60, [0, 1])
    record(run, tree, [20, 40], leave_out=[1])
    (opened,) = open_runs([run.path])
    begin, end = (steps(tree)[row] for row in (20, 40))
    assert opened.skipped == ()
    where = "before a0-worker-0/segment-000002.h5, are in no segment"
    expected = {f"env steps {begin[k]} to {end[k] - 1} of column {k}, {where}" for k in (0, 1)}
    if (begin[0], end[0]) == (begin[1], end[1]):
        expected = {f"env steps {begin[0]} to {end[0] - 1} of 2 columns (0, 1), {where}"}
    assert set(opened.missing) == expected
    assert len(episodes([opened]).compute(scheduler="synchronous")) > 0


def test_what_a_later_attempt_made_again_is_no_gap(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(0, 60, [0, 1])
    record(run, tree, [20, 40], leave_out=[1])  # all of the gap is abandoned
    resume = steps(tree)[18].tolist()
    new = history(1, 4, [0, 1])  # ends before the gap did
    new["start"][:] = resume
    record(run, new, attempt=1)
    resumed(run, 1, dict(enumerate(resume)))
    (opened,) = open_runs([run.path])
    assert opened.missing == ()
    table = episodes([opened]).compute(scheduler="synchronous")
    assert table[table.attempt == 0]["end"].max() <= max(resume)


def test_torn_and_newer_segments_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(0, 80, [0, 1])
    paths = record(run, tree, [20, 40, 60])
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    with h5py.File(paths[3], "r+") as file:
        file.attrs["format"] = 99
    (run.trajectories / "a0-worker-0" / "segment-000009.h5.tmp").write_bytes(b"open")  # is being written
    (opened,) = open_runs([run.path])
    torn, newer = opened.skipped
    assert str(paths[1]) in torn and "move it away" in torn
    assert "has format 99, this version reads 1" in newer
    assert len(opened.missing) >= 1 and all(str(paths[2].name) in gap for gap in opened.missing)
    table = episodes([opened]).compute(scheduler="synchronous")
    rows = [*range(20), *range(40, 60)]
    ended = sum(tree["episode_length"][row, k] > 0 for row in rows for k in (0, 1))
    assert len(table) == ended


def test_names_distinguish_runs_of_one_folder_name(tmp_path: Path) -> None:
    paths = [tmp_path / a / b for a, b in (("x", "seed"), ("y", "seed"), ("y", "other"))]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        new_run(path)
    assert [run.name for run in open_runs(paths)] == ["x/seed", "y/seed", "y/other"]
    assert [run.name for run in open_runs(paths[1:])] == ["seed", "other"]
    with pytest.raises(BadRun, match="is named twice"):
        open_runs([paths[0], paths[0] / ".." / "seed"])


def test_a_run_without_segments_is_opened(tmp_path: Path) -> None:
    (opened,) = open_runs([new_run(tmp_path / "run").path])
    assert (opened.segments, opened.columns, opened.chief, opened.state) == ((), [], None, "pending")
    assert len(episodes([opened]).compute(scheduler="synchronous")) == 0
    for wrong, text in (([], "no run to analyse"), ([tmp_path / "absent"], "absent")):
        with pytest.raises(BadRun, match=text):
            open_runs(wrong)


def test_histories_have_void_moves() -> None:
    tree = history(0, 60, [0, 1])
    assert 0 < (~valid(tree)).sum() < 60
