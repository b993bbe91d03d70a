"""Submissions with SLURM's commands faked: what is made, what is kept, what is undone.

Mutations seen to fail: `_unmake` removing the whole folder; `resume` without its look at the queue.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl import status as states
from hpc_rl.job import BadJob
from hpc_rl.launchers.batch import job_ids, note_job
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.slurm import SlurmError
from hpc_rl.storage.run_dir import BadRun, RunDir, create
from hpc_rl.submit import analyze_after, cancel, resume, submit, tasks

OPTIONS = Options(launcher="srun", mpi="pmi2", time="10")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake commands, first on PATH; their calls are lines of `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name, said in {"sbatch": "12", "squeue": "", "sacct": "", "scancel": "", "srun": "pmi2"}.items():
        answer(folder, name, said)
    return folder


def answer(folder: Path, name: str, said: str, code: int = 0) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho \"{name} $*\" >> {folder}/calls\ncat <<'E'\n{said}\nE\nexit {code}\n")
    file.chmod(0o755)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_seeds_and_sweeps_multiply(slurm: Path) -> None:
    found = tasks("ppo_cartpole", (), "0-2", ["ppo.learning_rate=1e-4,3e-4", "ppo.hidden=[64, 64],[32]"])
    assert len(found) == 12 and found[0].changes == ("ppo.learning_rate=1e-4", "ppo.hidden=[64, 64]", "seed=0")
    assert [task.job.seed for task in found[:4]] == [0, 1, 2, 0] and found[-1].job.method["hidden"] == (32,)


@pytest.mark.parametrize(
    ("seeds", "sweeps", "said"),
    [
        ("a-b", [], "write 0-4 or 1,3,5"),
        ("4-2", [], "names no seed"),
        ("1,1", [], "a seed twice"),
        (None, ["ppo.learning_rate"], "not KEY=VALUE"),
        (None, ["ppo.learning_rte=1"], "did you mean"),
        (None, ["seed=-1"], "seed = -1"),
        ("0-200000", [], "more than"),
    ],
)
def test_bad_ranges(seeds: str | None, sweeps: list[str], said: str) -> None:
    with pytest.raises(BadJob, match=said):
        tasks("ppo_cartpole", (), seeds, sweeps)


def test_a_submission_keeps_script_options_and_id(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert submit(tasks("impala_catch", (), None, ()), run, OPTIONS, False) == "12"
    assert job_ids(RunDir(run)) == ["12"] and RunDir(run).read_state()["state"] == "pending"
    assert "--time=10" in (run / "submit" / "job.sbatch").read_text()
    with pytest.raises(BadRun, match="holds another run"):
        submit(tasks("impala_catch", (), None, ()), run, OPTIONS, False)


def test_what_sbatch_refuses_leaves_nothing_and_touches_nothing_else(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "sbatch", "", 1)
    shelf = tmp_path / "runs"
    other = create(shelf / "other", jobs.dumps(jobs.load("impala_catch")))
    for out, array, seeds in ((shelf, True, "0-1"), (shelf / "new", True, "0-1"), (shelf / "one", False, None)):
        with pytest.raises(SlurmError):
            submit(tasks("impala_catch", (), seeds, ()), out, OPTIONS, array)
    assert [path.name for path in shelf.iterdir()] == ["other"] and other.job_file.exists()


def test_no_array_inside_a_run(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    with pytest.raises(BadRun, match="holds a single run"):
        submit(tasks("impala_catch", (), "0-1", ()), run.path, OPTIONS, True)


def test_status_of_a_hundred_runs_asks_once(slurm: Path, tmp_path: Path) -> None:
    found = tasks("impala_catch", (), "0-99", ())
    submit(found, tmp_path / "runs", OPTIONS, True)
    answer(slurm, "squeue", "\n".join(f"12_{k}|PENDING|Priority|2026-11-21T05:00:00|" for k in range(100)))
    lines = states.status([tmp_path / "runs"])
    assert len(lines) == 100 and {line.slurm for line in lines} == {"PENDING"} and lines[7].job == "12_7"
    assert sum(line.startswith(("squeue", "sacct")) for line in calls(slurm)) == 1
    assert "starts about 2026-11-21T05:00:00" in states.render(lines) and len(json.loads(states.as_json(lines))) == 100


@pytest.mark.parametrize(
    ("queue", "account", "said"),
    [("", "12|NODE_FAIL|x|n1", "SLURM ended job 12: NODE_FAIL"), ("", "", "SLURM no longer knows job 12")],
)
def test_a_run_that_slurm_lost_is_lost(slurm: Path, tmp_path: Path, queue: str, account: str, said: str) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    answer(slurm, "squeue", queue)
    answer(slurm, "sacct", account)
    (line,) = states.status([tmp_path / "run"])
    assert line.state == "lost" and said in line.reason


def test_resume_sends_the_same_again_with_changes(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    submit(
        tasks("impala_catch", (), None, ()), folder, Options(launcher="srun", partition="big", after=("ok:3",)), False
    )
    RunDir(folder).request_stop()
    answer(slurm, "sbatch", "13")
    given = {"time": "1-0", "modules": (), "partition": None}
    assert resume(folder, ["budget.env_steps=999999"], given) == "13"
    text = (folder / "submit" / "job.sbatch").read_text()
    assert "--partition=big" in text and "--time=1-0" in text and "afterok" not in text
    assert job_ids(RunDir(folder)) == ["12", "13"] and not RunDir(folder).stop_requested()
    assert jobs.load(folder / "job.toml").budget.env_steps == 999999


def test_resume_refuses_what_is_queued_done_or_changed(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    submit(tasks("impala_catch", (), None, ()), folder, OPTIONS, False)
    answer(slurm, "squeue", "12|PENDING|Resources|N/A|")
    with pytest.raises(BadRun, match="still pending as job 12"):
        resume(folder, [], {})
    answer(slurm, "squeue", "")
    RunDir(folder).write_state(state="done")
    with pytest.raises(BadRun, match="raise its budget"):
        resume(folder, [], {})
    with pytest.raises(BadJob, match=r"impala.unroll cannot change"):
        resume(folder, ["impala.unroll=5"], {})


def test_cancel_ends_waiting_jobs_at_once(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    note_job(run, "12")
    answer(slurm, "squeue", "12|PENDING|Resources|N/A|")
    assert "cancelled while waiting" in cancel(run.path)
    assert "scancel 12" in calls(slurm) and run.read_state()["state"] == "stopped" and not run.stop_requested()
    answer(slurm, "squeue", "")
    assert "no job is queued" in cancel(run.path)


def test_the_analysis_waits_for_the_runs(slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "submit").mkdir()
    assert analyze_after("11", [tmp_path / "a b"], OPTIONS, tmp_path) == "12"
    text = (tmp_path / "submit" / "analysis.sbatch").read_text()
    assert "#SBATCH --dependency=afterany:11" in text and f"runs=('{tmp_path}/a b')" in text
