"""The verdict after the ranks: requeue, or not, and why. Mutations seen to fail: the progress rule, STOP ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import batch
from hpc_rl.launchers.batch import IDLE_RESTARTS
from hpc_rl.storage.run_dir import BUDGET_SPENT, BadRun, RunDir, create

RANKS = 3


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch", [f"resources.ranks={RANKS}"])))


def attempt(
    run: RunDir, restarts: int, steps: int, state: str, reason: str = "stopped: asked to stop", **more: Any
) -> str:
    """One attempt from begin to end, whose ranks left this state behind."""
    batch.begin(run.path, "77", f"77-{restarts}", restarts, RANKS, None, [])
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
        f"77-{restarts}",
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
        batch.begin(run.path, "1", "t", 0, 2, None, [])
    assert run.read_state()["state"] == "failed" and "SLURM gives 2" in run.read_state()["reason"]
    with pytest.raises(BadRun, match="holds no run"):
        batch.begin(tmp_path / "none", "1", "t", 0, 2, None, [])


def test_an_attempt_that_slurm_gave_up_touches_nothing(run: RunDir) -> None:
    """Its node was out of reach; the requeued job runs elsewhere by now."""
    batch.begin(run.path, "77", "77-0-old", 0, RANKS, None, [])
    batch.begin(run.path, "77", "77-1-new", 1, RANKS, None, [])
    run.write_state(state="running", reason="")
    growing = run.trajectories / "column" / "segment-1.h5.tmp"
    growing.parent.mkdir()
    growing.touch()
    assert batch.end(run.path, "77-0-old", 1, True, 0, 9, "requeue") == "superseded"
    assert growing.exists() and run.read_state()["state"] == "running"


def test_attempts_that_are_lost_with_their_node_end_after_three(run: RunDir) -> None:
    """Nobody called `end`, so the next attempt counts."""
    for restarts in range(IDLE_RESTARTS):
        batch.begin(run.path, "77", f"77-{restarts}", restarts, RANKS, None, [])
    with pytest.raises(BadJob, match=r"3 attempts in a row.*then hpc-rl resume"):
        batch.begin(run.path, "77", "77-3", IDLE_RESTARTS, RANKS, None, [])
    assert run.read_state()["state"] == "failed"
    batch.begin(run.path, "78", "78-0", 0, RANKS, None, [])  # somebody sent it again
    run.write_state(env_steps=50)
    batch.begin(run.path, "78", "78-1", 1, RANKS, None, [])
    assert json.loads((run.path / "submit" / "attempt.json").read_text())["idle"] == 0


def test_a_stop_written_while_it_waited_holds(run: RunDir) -> None:
    run.request_stop()
    batch.begin(run.path, "77", "t", 0, RANKS, None, [])
    assert run.stop_requested()


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("srun: error: n1: task 1: Out Of Memory\n", "ended: out of memory"),
        ("srun: error: n1: task 1: Bus error (core dumped)\n", "ended: bus error"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n1: task 1: Killed\n",
         "ended: killed by the node's memory limit"),
    ],
)  # fmt: skip
def test_srun_names_the_rank_and_its_end(run: RunDir, said: str, end: str) -> None:
    records: dict[int, dict[str, str]] = {0: {}, 1: {}, 2: {}}
    attempt(run, 0, 10, "running", "", said=said, code=137, asked=False, records=records)
    assert run.read_state()["reason"].startswith(f"rank 1 (actor-1) on n1 {end};")


def test_a_torn_record_of_a_rank_is_passed_over(run: RunDir) -> None:
    batch.begin(run.path, "77", "t", 0, RANKS, None, [])
    (run.logs / "rank-000.json").write_text('{"pid": 1')
    assert batch.end(run.path, "t", 1, False, 0, 9, "requeue") == "again"


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
