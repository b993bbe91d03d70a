"""What a run finds broken or breaks by itself: checkpoints, numbers, disks, the world. No clock is watched here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_rl.storage import checkpoint, segments
from hpc_rl.storage.run_dir import RunDir
from tests.run.gapless import assert_gapless
from tests.run.program import (
    assert_failed,
    checkpoints,
    environment,
    hpc_rl,
    leftovers,
    records,
    state,
    summary,
    write_job,
)
from tests.run.starting import run_to_end

# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(job, run) of a short run on one rank that has saved several times."""
    folder = tmp_path_factory.mktemp("finished")
    job, run = write_job(folder, "ppo", 1, env_steps=3000, topology="solo"), folder / "run"
    result = hpc_rl("run", job, "--out", run, "--set", "checkpoint.interval_s=0.1")
    assert result.code == 0 and len(checkpoints(run)) == 3, result.err
    return job, run


@pytest.fixture
def again(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of it, to be damaged."""
    job, run = finished
    shutil.copytree(run, tmp_path / "run")
    return job, tmp_path / "run"


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_torn_newest_checkpoint_falls_back_and_says_so(again: tuple[Path, Path]) -> None:
    job, run = again
    newest, before = checkpoints(run)[-1], checkpoints(run)[-2]
    steps = checkpoint.load(before)[1]["env_steps"]
    tear(newest)
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", "budget.env_steps=4000")
    assert result.code == 0, result.err
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and newest.name in warnings[0] and "falling back" in warnings[0]
    assert f'"{before.relative_to(run)}"' in (run / "provenance" / "0001.json").read_text()
    assert steps < 3000 and summary(run)["env_steps"] >= 4000
    assert_gapless(run)


def test_without_a_readable_checkpoint_nothing_starts_afresh(again: tuple[Path, Path]) -> None:
    job, run = again
    for path in checkpoints(run):
        tear(path)
    torn = [path.read_bytes() for path in checkpoints(run)]
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", "budget.env_steps=4000")
    assert result.code == 1 and "none of the 3 checkpoints" in result.last and "never starts afresh" in result.last
    assert [path.read_bytes() for path in checkpoints(run)] == torn and len(list(run.glob("provenance/*"))) == 1


def test_a_checkpoint_of_another_job_names_the_key(again: tuple[Path, Path]) -> None:
    _, run = again
    text = (run / "job.toml").read_text()
    (run / "job.toml").write_text(text.replace('"toy/catch"', '"toy/chain"'))
    result = hpc_rl("run", run / "job.toml", "--out", run, "--resume", "--set", "budget.env_steps=4000")
    assert result.code == 1 and "environment.id is 'toy/catch' in the checkpoint and 'toy/chain'" in result.last
    assert "Traceback" not in result.err


# ---- numbers and disks ----------------------------------------------------------------------------------------------

USERS = """
import gymnasium, numpy

class Game(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Discrete(2)
    moves = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return numpy.zeros(3, numpy.float32), {}

    def step(self, action):
        self.moves += 1
        return numpy.zeros(3, numpy.float32), float("nan") if self.moves > 100 else 0.0, self.moves % 10 == 0, False, {}

def make():
    return Game()
"""


@pytest.mark.parametrize("method", ["ppo", "impala"])
def test_a_loss_that_turns_nan_ends_the_run(method: str, tmp_path: Path) -> None:
    (tmp_path / "users_nan.py").write_text(USERS)
    job = write_job(tmp_path, method, 2, environment="users_nan:make")
    settings = ["--set", "ppo.epochs=5"] if method == "ppo" else []
    run = tmp_path / "run"
    result = hpc_rl("run", job, "--out", run, *settings, PYTHONPATH=str(tmp_path))
    assert_failed(run, result, f"{method}, update ", "10 updates in a row dropped a step", "columns 0-", "not finite")
    assert "column 0, env step " in result.err and "the reward is nan" in result.err
    for path in checkpoints(run):
        assert checkpoint.load(path)[0]["weights"].isfinite().all()


CLOSES = USERS.replace('float("nan") if self.moves > 100 else 0.0', "0.0").replace(
    "def make",
    """    def close(self):
        if self.moves:  # not where it is only described
            HOW


def make""",
)


RAISES, CRASHES = "raise RuntimeError('no display')", "import os; os.kill(os.getpid(), 11)"


@pytest.mark.parametrize(
    ("method", "ranks", "more", "end"),
    [
        ("ppo", 1, [], RAISES),
        ("ppo", 1, [], CRASHES),
        ("impala", 2, [], CRASHES),
        ("impala", 2, ["central"], CRASHES),
    ],
)
def test_an_environment_that_fails_as_it_is_closed(
    method: str, ranks: int, more: list[str], end: str, tmp_path: Path
) -> None:
    """Seen: it turned a finished run into a failed one, and a crash there could come before the last checkpoint.

    An error ends where it is raised; a crash ends a rank, whatever its role, and by MPI all others.
    """
    (tmp_path / "users_close.py").write_text(CLOSES.replace("HOW", end))
    topology = "solo" if ranks == 1 else "allreduce"
    job = write_job(tmp_path, method, ranks, 1000, environment="users_close:make", topology=topology)
    run, settings = tmp_path / "run", [f"sampler={name}" for name in more]
    sets = [part for item in settings for part in ("--set", item)]
    result = hpc_rl("run", job, "--out", run, *sets, PYTHONPATH=str(tmp_path))
    assert result.code == 0 and state(run)["state"] == "done", result.err
    assert summary(run)["env_steps"] >= 1000 and result.out.strip() == str(run)
    assert checkpoint.load(checkpoints(run)[-1])[1]["env_steps"] == summary(run)["env_steps"]
    expected = "users_close:make: close() raised RuntimeError: no display" if "raise" in end else "signal 11"
    assert expected in result.err, result.err
    assert leftovers(run) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here, so a full disk cannot be made")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("method", ["ppo", "impala"])
def test_a_full_disk_ends_the_run_and_loses_nothing(method: str, small_disk: Path, tmp_path: Path) -> None:
    job, run = write_job(tmp_path, method, 2), small_disk / "run"
    result = hpc_rl("run", job, "--out", run, "--set", "output.compression=none")
    assert result.code == 1 and "Traceback" not in result.err
    assert "free space" in result.last and str(small_disk) in result.last, result.err
    assert leftovers(run) == []
    saved = checkpoint.newest(RunDir(run), lambda text: None)
    for path in segments.segments(run):
        segments.describe(path)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    steps = saved[2]["env_steps"] if saved else 0
    more = ["--set", f"budget.env_steps={steps + 300}"]
    result = hpc_rl("run", job, "--out", run, "--resume", *more)
    assert result.code == 0, result.err
    assert_gapless(run)


def test_a_read_only_disk_is_said_in_one_sentence(small_disk: Path, tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "ppo", 1, env_steps=200), small_disk / "run"
    result = hpc_rl("run", job, "--out", run)
    assert result.code == 0, result.err + str(records(run))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out, more in ((run, ["--resume", "--set", "budget.env_steps=400"]), (small_disk / "other", [])):
        result = hpc_rl("run", job, "--out", out, *more)
        assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1
        assert "cannot be written" in result.err and str(small_disk) in result.err


# ---- the world ------------------------------------------------------------------------------------------------------


def test_singletons_instead_of_a_world(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[1], tmp_path / "run")
    rank = [sys.executable, "-m", "hpc_rl.rank", str(tmp_path / "run"), "3"]
    result = run_to_end(rank, 60, environment())
    assert result.returncode == 1
    sentence = next(line for line in result.stderr.splitlines() if line.startswith("rank 0: "))
    assert (
        "MPI sees 1 rank(s) where 3 were started" in sentence and "PMI" in sentence and "Traceback" not in result.stderr
    )


def test_an_mpi_without_threads_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    """An inference server in its learner's process sends and receives beside the learner."""
    job = write_job(tmp_path, "impala", 3, 500)
    central = ["--set", "sampler=central"]
    level = {"MPI4PY_RC_THREAD_LEVEL": "funneled"}
    result = hpc_rl("run", job, "-n", 2, "--out", tmp_path / "no", *central, **level)
    assert_failed(tmp_path / "no", result, "rank 0 (learner-0)", "needs MPI_THREAD_MULTIPLE", 'inference = "actor"')
    result = hpc_rl("run", job, "--out", tmp_path / "other", *central, "--set", "resources.inference=actor", **level)
    assert result.code == 0, result.err
