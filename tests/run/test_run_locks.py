"""A run on a file system where nothing can be locked ends as it does anywhere else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_rl.storage import checkpoint, segments
from tests.run.program import checkpoints, hpc_rl, summary, write_job


def test_a_run_needs_no_locks(without_locks: Callable[[int], None], tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "ppo", 1, env_steps=500, topology="solo"), tmp_path / "run"
    without_locks(errno.ENOLCK)
    one_segment = ("--set", "checkpoint.interval_s=100")  # each checkpoint would begin another
    first = hpc_rl("run", job, "--out", run, *one_segment)
    assert first.code == 0, first.err
    without_locks(errno.EOPNOTSUPP)
    again = hpc_rl("run", job, "--out", run, "--resume", "--set", "budget.env_steps=1000")
    assert again.code == 0, again.err
    assert summary(run)["env_steps"] >= 1000
    assert all(checkpoint.load(path) for path in checkpoints(run)) and len(segments.segments(run)) == 2


def test_locks_that_are_forced_are_named_and_not_the_disk(
    without_locks: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    without_locks(errno.ENOLCK)
    result = hpc_rl("run", write_job(tmp_path, "ppo", 1, 500, topology="solo"), "--out", tmp_path / "run")
    assert (
        result.code == 1
        and "HDF5_USE_FILE_LOCKING=TRUE asks for file locks" in result.last
        and "unset it" in result.last
    )
    assert "free space" not in result.last
