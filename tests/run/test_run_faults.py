"""Faults on purpose: the whole job ends soon, says who and why, and what it has saved can be resumed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.launchers.leftovers import take_over
from hpc_rl.storage import checkpoint, trajectories
from hpc_rl.storage.run_dir import create
from tests.run.gapless import assert_gapless
from tests.run.program import (
    BOTH_MPIS,
    Ended,
    checkpoints,
    ended,
    environment,
    hpc_rl,
    kill_everything,
    learning,
    leftovers,
    records,
    started,
    state,
    summary,
    wait_for,
    write_job,
)
from tests.run.starting import run_to_end

END_S = 10.0  # from the fault to the end of the whole job


def assert_failed(run: Path, result: Ended, *words: str) -> None:
    """Non-zero, one sentence with these words at the end of the talk, state failed, nothing left behind."""
    assert result.code == 1 and result.out == "", result.err
    assert result.last.startswith("error: "), result.err
    for word in words:
        assert word in result.last, result.err
    assert "Traceback" not in result.err
    assert state(run)["state"] == "failed" and leftovers(run) == []


# ---- one rank fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", BOTH_MPIS)
def test_an_exception_in_one_environment_ends_the_job(python: str, tmp_path: Path) -> None:
    struck, run = tmp_path / "struck", tmp_path / "run"
    arguments = f'{{ at = 200, once = "{struck}" }}'
    job = write_job(tmp_path, "impala", 3, environment="toy/faulty", arguments=arguments)
    result = hpc_rl("run", job, "--out", run, python=python)
    assert_failed(run, result, "(actor-", "RuntimeError: toy/faulty fails at move 200", "traceback is in")
    assert result.at - (time.monotonic() - time.time() + struck.stat().st_mtime) < END_S
    guilty = [record for record in records(run) if record.get("ended") == "error"]
    assert f"rank {result.last.split('rank ')[1].split()[0]} " in result.last and "toys.py" in guilty[0]["trace"]


def assert_named_when_killed(run: Path, process: subprocess.Popen[str], role: str) -> None:
    """SIGKILL the rank of this role: the job soon ends, and says who it was."""
    rank, victim = next((k, record) for k, record in enumerate(records(run)) if record["role"] == role)
    os.kill(victim["pid"], signal.SIGKILL)
    struck = time.monotonic()
    result = ended(process)
    assert result.at - struck < END_S
    assert_failed(run, result, f"rank {rank} ({role})", "killed by signal 9")


@pytest.mark.parametrize("python", BOTH_MPIS)
@pytest.mark.parametrize("role", ["learner-0", "actor-1", "worker-1"])
def test_sigkill_of_one_rank_ends_the_job(role: str, python: str, tmp_path: Path) -> None:
    method, ranks = ("ppo", 2) if role.startswith("worker") else ("impala", 3)
    job, run = write_job(tmp_path, method, ranks), tmp_path / "run"
    with started("run", job, "--out", run, python=python) as process:
        wait_for(lambda: learning(run, ranks), process)
        assert_named_when_killed(run, process, role)


OTHERS = {  # role to kill -> method, topology, ranks, settings
    "env_worker-1": ("impala", "actor_learner", 3, ["sampler=central"]),
    "parameter_server-0": ("ppo", "parameter_server", 3, []),
    "worker-1": ("ppo", "parameter_server", 3, ["resources.quorum=1"]),
    "evaluator-0": ("ppo", "allreduce", 3, ["resources.evaluators=1", "evaluate.every_steps=500"]),
}


@pytest.mark.parametrize("role", OTHERS)
def test_other_roles_are_named_too_and_no_step_is_lost(role: str, tmp_path: Path) -> None:
    """After a resume every column counts on from its checkpoint: a half-unroll was neither recorded nor learned."""
    method, topology, ranks, settings = OTHERS[role]
    sets = [part for item in settings for part in ("--set", item)]
    job = write_job(tmp_path, method, ranks, topology=topology)
    run = tmp_path / "run"
    with started("run", job, "--out", run, *sets) as process:
        wait_for(lambda: learning(run, ranks) and checkpoints(run), process)
        assert_named_when_killed(run, process, role)
    if role != "env_worker-1":
        return
    budget = ["--set", f"budget.env_steps={state(run)['env_steps'] + 2000}"]
    result = hpc_rl("run", job, "--out", run, "--resume", *sets, *budget)
    assert result.code == 0 and state(run)["state"] == "done", result.err
    assert_gapless(run)


def test_ranks_that_read_another_job_are_named(tmp_path: Path) -> None:
    """Two folders in the place of one that is not shared: one program for each rank, as MPI allows."""
    parts = []
    for name, columns in (("one", 4), ("other", 8)):
        job = jobs.load(write_job(tmp_path, "ppo", 2), [f"environment.columns={columns}"])
        create(tmp_path / name, jobs.dumps(job))
        parts += [":", "-n", "1", sys.executable, "-m", "hpc_rl.rank", str(tmp_path / name), "2"]
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    result = run_to_end([mpiexec, *parts[1:]], 60)
    assert result.returncode != 0
    assert "rank 1 on" in result.stderr and "reads another job than rank 0" in result.stderr


def test_sigkill_between_sums_by_gloo_is_told_apart_from_their_failure(tmp_path: Path) -> None:
    """The survivor's gloo fails first and at once; the one that was killed is named, and nothing hangs at its exit."""
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    with started("run", job, "--out", run, "--set", "resources.reduction=gloo") as process:
        wait_for(lambda: learning(run, 2), process)
        os.kill(records(run)[1]["pid"], signal.SIGKILL)
        struck = time.monotonic()
        result = ended(process)
    assert result.at - struck < END_S
    assert_failed(run, result, "rank 1 (worker-1)", "killed by signal 9")


@pytest.mark.parametrize("python", BOTH_MPIS)
@pytest.mark.parametrize("role", ["actor-1", "worker-1"])
def test_a_rank_that_hangs_is_noticed(role: str, python: str, tmp_path: Path) -> None:
    """A stopped process keeps its connections open: only the deadline tells."""
    method, ranks = ("ppo", 2) if role.startswith("worker") else ("impala", 3)
    job, run = write_job(tmp_path, method, ranks), tmp_path / "run"
    with started("run", job, "--out", run, "--set", "resources.deadline_s=4", python=python) as process:
        wait_for(lambda: learning(run, ranks), process)
        victim = next(record for record in records(run) if record["role"] == role)
        os.kill(victim["pid"], signal.SIGSTOP)
        struck = time.monotonic()
        result = ended(process)
    assert result.at - struck < 4 + END_S
    assert_failed(run, result, "waited 4 s for", "is that rank alive?")
    if role == "actor-1":
        assert "rank 2 on " in result.last or "rank 2 (actor-1)" in result.last  # no message, or no closed segments


# ---- everything is killed -------------------------------------------------------------------------------------------


def test_sigkill_of_everything_at_any_moment_can_be_resumed(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "impala", 3, environment="toy/counter"), tmp_path / "run"
    moments = random.Random(7)
    closed: dict[Path, bytes] = {}
    for attempt in range(3):
        again = ["--resume"] if attempt else []
        with started("run", job, "--out", run, *again) as process:
            wait_for(lambda attempt=attempt: learning(run, 3, attempt), process)
            time.sleep(moments.uniform(0.0, 2.0))
            kill_everything(run)
        assert state(run)["state"] == "running"
        for path, data in closed.items():
            assert path.read_bytes() == data  # nobody touches a closed segment
        closed = {path: path.read_bytes() for path in trajectories.segments(run)}
    saved = checkpoint.newest(run_dir(run), lambda text: None)
    steps = saved[2]["env_steps"] if saved else 0
    assert steps > 0
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", f"budget.env_steps={steps + 500}")
    assert result.code == 0, result.err
    assert summary(run)["attempt"] == 3
    assert_gapless(run)
    assert leftovers(run) == []


def run_dir(run: Path) -> checkpoint.RunDir:
    return checkpoint.RunDir(run)


def test_a_run_that_is_at_work_cannot_be_resumed_beside_it(tmp_path: Path) -> None:
    """Also when only the launcher was killed: its ranks go on, and say so by their presence."""
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    with started("run", job, "--out", run) as process:
        wait_for(lambda: learning(run, 2), process)
        result = hpc_rl("run", job, "--out", run, "--resume")
        assert result.code == 2 and "is in use by process" in result.last
        other = hpc_rl("run", job, "--out", run)
        assert other.code == 2 and "holds a run already" in other.last
        assert process.poll() is None
        kill_everything(run)
    files = [Path(name) for record in records(run) for name in record["shared"]]
    files += [Path("/dev/shm") / f"hpc_rl-{record['token']}-0" for record in records(run)]
    take_over(run_dir(run))  # what the next attempt does first
    assert not any(path.exists() for path in files)


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


@pytest.mark.parametrize("end", ["raise RuntimeError('no display')", "import os; os.kill(os.getpid(), 11)"])
@pytest.mark.parametrize(("method", "ranks", "more"), [("ppo", 1, []), ("impala", 3, []), ("impala", 3, ["central"])])
def test_an_environment_that_fails_as_it_is_closed(
    end: str, method: str, ranks: int, more: list[str], tmp_path: Path
) -> None:
    """Seen: it turned a finished run into a failed one, and a crash there could come before the last checkpoint."""
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
    saved = checkpoint.newest(run_dir(run), lambda text: None)
    for path in trajectories.segments(run):
        trajectories.describe(path)
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
    result = hpc_rl("run", job, "--out", tmp_path / "no", *central, **level)
    assert_failed(tmp_path / "no", result, "rank 0 (learner-0)", "needs MPI_THREAD_MULTIPLE", 'inference = "actor"')
    result = hpc_rl("run", job, "--out", tmp_path / "other", *central, "--set", "resources.inference=actor", **level)
    assert result.code == 0, result.err
