"""Faults on purpose: the whole job ends soon, says who and why, and what it has saved can be resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.launchers.leftovers import take_over
from hpc_rl.storage import checkpoint, replay_files, segments
from hpc_rl.storage.run_dir import RunDir, create
from tests.run.gapless import assert_gapless
from tests.run.program import (
    BOTH_MPIS,
    assert_failed,
    checkpoints,
    ended,
    hpc_rl,
    kill_everything,
    learning,
    leftovers,
    processes,
    records,
    started,
    state,
    summary,
    wait_for,
    write_job,
)
from tests.run.starting import run_to_end

END_S = 10.0  # from the fault to the end of the whole job


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


REPLAY = """
algorithm = "dqn"
topology = "actor_replay_learner"
[environment]
id = "toy/catch"
columns = 2
[dqn]
unroll = 5
hidden = [8]
capacity = 4000
min_size = 1000
batch_size = 16
samples_per_insert = 2.0
[resources]
ranks = 4
threads = 1
precision = "fp32"
[output]
metrics_s = 0.2
[checkpoint]
interval_s = 0.3
"""


def test_a_replay_rank_that_is_killed_ends_the_job_which_goes_on_with_its_memory(tmp_path: Path) -> None:
    job, run = tmp_path / "replay.toml", tmp_path / "run"
    job.write_text(REPLAY)
    with started("run", job, "--out", run) as process:
        wait_for(lambda: learning(run, 4) and checkpoints(run) and state(run)["updates"] > 100, process)
        assert_named_when_killed(run, process, "replay_server-0")
    begun = state(run)
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", f"budget.env_steps={begun['env_steps'] + 900}")
    assert result.code == 0 and "warning" not in result.err, result.err
    ended_at, kept = state(run), checkpoint.load(checkpoints(run)[-1])[0]["stores"]
    steps, updates = (ended_at[name] - begun[name] for name in ("env_steps", "updates"))
    assert updates * 16 > 0.9 * 2 * steps, "it waited for a replay to be filled, as long as it lasted"
    assert sorted(int(part["column"][0]) for part in kept) == [0, 1]
    replay_files.check(RunDir(run), {"stores": kept})
    inserted = sum(int(replay_files.read(RunDir(run), part["file"])["env_steps"].sum()) for part in kept)
    assert inserted >= ended_at["env_steps"]
    assert list(run.glob("checkpoints/replay/*.tmp")) == [] == leftovers(run)


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


def end_of_a_run_whose_rank_hangs(role: str, python: str, folder: Path) -> None:
    """A stopped process keeps its connections open: only the deadline tells."""
    method, ranks = ("ppo", 2) if role.startswith("worker") else ("impala", 3)
    job, run = write_job(folder, method, ranks), folder / "run"
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


@pytest.fixture(scope="module")
def hanging(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Future[None]]]:
    """Those of the runs that were asked for, by role and Python; they wait for long, so two are at work at once."""
    tests = [x for x in request.session.items if getattr(x, "originalname", "") == "test_a_rank_that_hangs_is_noticed"]
    pairs = [(x.callspec.params["role"], x.callspec.params["python"]) for x in tests]  # type: ignore[attr-defined]
    pool = ThreadPoolExecutor(2)
    yield {
        pair: pool.submit(end_of_a_run_whose_rank_hangs, *pair, tmp_path_factory.mktemp("hangs"))
        for pair in pairs
        if pair[1]
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("python", BOTH_MPIS)
@pytest.mark.parametrize("role", ["actor-1", "worker-1"])
def test_a_rank_that_hangs_is_noticed(role: str, python: str, hanging: dict[tuple[str, str], Future[None]]) -> None:
    hanging[role, python].result()


# ---- everything is halted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "topology", "ranks"),
    [
        ("impala", "actor_learner", 3),
        ("dqn", "actor_replay_learner", 5),
        ("ppo", "parameter_server", 3),
    ],
)
def test_a_job_that_is_suspended_goes_on(method: str, topology: str, ranks: int, tmp_path: Path) -> None:
    """What `scontrol suspend` does: every process stands still for longer than the deadline, and none is to blame."""
    job, run = write_job(tmp_path, method, ranks, topology=topology), tmp_path / "run"
    judged = ["--set", "resources.evaluators=1", "--set", "evaluate.every_steps=1000"] if ranks == 5 else []
    with started("run", job, "--out", run, "--set", "resources.deadline_s=4", *judged) as process:
        wait_for(lambda: learning(run, ranks) and reported_steps(run), process)
        halted = [process.pid, *processes(run)]
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        before = reported_steps(run)
        time.sleep(9.0)
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: reported_steps(run) > before + 1000, process)
        (run / "STOP").touch()
        result = ended(process)
    assert state(run)["state"] == "stopped", result.stderr


def reported_steps(run: Path) -> int:
    """Env steps of the last line of metrics that rank 0 wrote; 0 before the first."""
    first = records(run)[0]["role"]
    lines = (run / "metrics" / f"{first}.jsonl").read_text().splitlines()
    return int(json.loads(lines[-1])["env_steps"]) if lines else 0


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
        closed = {path: path.read_bytes() for path in segments.segments(run)}
    saved = checkpoint.newest(RunDir(run), lambda text: None)
    steps = saved[2]["env_steps"] if saved else 0
    assert steps > 0
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", f"budget.env_steps={steps + 500}")
    assert result.code == 0, result.err
    assert summary(run)["attempt"] == 3
    assert_gapless(run)
    assert leftovers(run) == []


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
    take_over(RunDir(run))  # what the next attempt does first
    assert not any(path.exists() for path in files)
