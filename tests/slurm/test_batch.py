"""The verdict after the ranks: requeue, or not, and why. Mutations seen to fail: the progress rule, STOP ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import batch
from hpc_rl.storage.run_dir import BUDGET_SPENT, BadRun, RunDir, create

RANKS = 3


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch", [f"resources.ranks={RANKS}"])))


def attempt(
    run: RunDir, restarts: int, steps: int, state: str, reason: str = "stopped: asked to stop", **more: Any
) -> str:
    """One attempt from begin to end, whose ranks left this state behind."""
    batch.begin(run.path, "77", RANKS, None, [])
    if more.get("stop_file"):
        run.request_stop()
    records = more.get("records", {0: {"ended": "ok"}, 1: {"ended": "ok"}, 2: {"ended": "ok"}})
    for rank, record in records.items():
        text = json.dumps({"pid": 2**22 + rank, "role": f"actor-{rank}", "host": f"n{rank}", "token": "", **record})
        (run.logs / f"rank-{rank:03d}.json").write_text(text)
    with (run.logs / "ranks.log").open("a") as log:
        log.write(more.get("said", ""))
    run.write_state(state=state, reason=reason, env_steps=steps)
    return batch.end(
        run.path,
        more.get("code", 0),
        more.get("asked", True),
        restarts,
        more.get("most", 100),
        more.get("mode", "requeue"),
    )


def test_time_is_up_and_there_was_progress(run: RunDir) -> None:
    assert attempt(run, 0, 100, "stopped") == "again"
    state = run.read_state()
    assert state["state"] == "pending" and "restart 1" in state["reason"]
    assert attempt(run, 1, 200, "stopped") == "again"


def test_done_is_done(run: RunDir) -> None:
    assert attempt(run, 3, 100, "done", "done: budget") == "done" and run.read_state()["state"] == "done"


def test_somebody_asked_it_to_stop(run: RunDir) -> None:
    assert attempt(run, 0, 100, "stopped", stop_file=True) == "stopped"
    assert attempt(run, 0, 300, "stopped", f"{BUDGET_SPENT} 5 s", asked=False) == "stopped"
    assert attempt(run, 0, 500, "stopped", mode="none") == "stopped"


def test_a_failed_restart_without_progress_ends_it_but_a_first_start_may_fail_once(run: RunDir) -> None:
    dead = {"said": "srun: error: n2: task 2: Killed\n", "code": 137, "asked": False, "records": {0: {}, 1: {}, 2: {}}}
    assert attempt(run, 0, 0, "running", "", **dead) == "again"
    assert attempt(run, 1, 0, "running", "", **dead) == "failed"
    reason = run.read_state()["reason"]
    assert reason == "rank 2 (actor-2) on n2 ended: killed; a restart made no progress, so it is not started again"


def test_failures_with_progress_go_on(run: RunDir) -> None:
    failed = {"asked": False, "code": 1, "records": {1: {"ended": "error", "time": 1.0, "error": "boom", "bug": True}}}
    assert [attempt(run, k, 100 * (k + 1), "running", "", **failed) for k in range(3)] == ["again"] * 3
    assert "rank 1 (actor-1) on n1 failed: boom" in run.read_state()["reason"]


def test_signals_that_come_too_early_three_times_end_it(run: RunDir) -> None:
    assert [attempt(run, k, 0, "stopped") for k in range(3)] == ["again", "again", "stopped"]
    assert "no progress" in run.read_state()["reason"]


def test_a_signal_before_the_ranks_had_started(run: RunDir) -> None:
    assert attempt(run, 0, 0, "pending", "", records={}) == "again"


def test_max_restarts(run: RunDir) -> None:
    assert attempt(run, 2, 100, "stopped", most=2) == "stopped" and "--max-restarts" in run.read_state()["reason"]


def test_begin_checks_ranks_and_folder(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(BadJob, match=r"SLURM gives 2 task\(s\).*resources.ranks = 3"):
        batch.begin(run.path, "1", 2, None, [])
    with pytest.raises(BadRun, match="holds no run"):
        batch.begin(tmp_path / "none", "1", 2, None, [])


def test_begin_makes_a_run_from_a_job_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "new")
    arguments = ["begin", folder, "--job", "5_1", "--ranks", "3", "--source", "impala_catch", "--set=seed=9"]
    assert batch.main(arguments) == 0 and batch.main(arguments) == 0
    job = jobs.load(Path(folder) / "job.toml")
    assert job.seed == 9 and job.resources.ranks == 3 and batch.job_ids(RunDir(Path(folder))) == ["5_1"]
    assert batch.main(["begin", folder, "--ranks", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: SLURM gives 9")


def test_jobs_are_listed_once_in_order(run: RunDir) -> None:
    for job in ("3", "4", "3", "5_0"):
        batch.note_job(run, job)
    assert batch.job_ids(run) == ["3", "4", "5_0"]
