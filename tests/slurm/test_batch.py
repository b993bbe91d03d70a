"""The verdict after the ranks: requeue, or not, and why. Mutations seen to fail: the progress rule, STOP ignored."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import attempt as batch
from hpc_rl.launchers.attempt import IDLE_RESTARTS
from hpc_rl.launchers.causes import Ending, user
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME, TOO_FEW
from hpc_rl.storage.run_dir import BadRun, RunDir, create

RANKS = 3


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch", [f"resources.ranks={RANKS}"])))


def attempt(
    run: RunDir, restarts: int, steps: int, state: str, reason: str = "stopped: asked to stop", **more: Any
) -> str:
    """One attempt from begin to end, whose ranks left this state behind."""
    sequel(run, restarts)
    batch.begin(run.path, "77", f"77-{restarts}", RANKS, None, [])
    if more.get("stop_file"):
        run.request_stop()
    records = more.get("records", {0: {"ended": "ok"}, 1: {"ended": "ok"}, 2: {"ended": "ok"}})
    for rank, record in records.items():
        text = json.dumps({"pid": 2**22 + rank, "role": f"actor-{rank}", "host": f"n{rank}", "token": "", **record})
        (run.logs / f"rank-{rank:03d}.json").write_text(text)
    with (run.logs / "ranks.log").open("a") as log:
        log.write(more.get("said", ""))
    run.write_state(state=state, reason=reason, env_steps=steps)
    ending = Ending(
        "", "USR1" if more.get("asked", True) else "", more.get("left", 100.0), 120.0, more.get("record", ""),
        more.get("account", ""),
    )  # fmt: skip
    word = batch.end(
        run.path, f"77-{restarts}", more.get("code", 0), more.get("most", 100), more.get("mode", "requeue"), ending
    )
    return word


def sequel(run: RunDir, restarts: int) -> None:
    """Job 77 has begun so often before."""
    file = run.path / "submit" / "attempt.json"
    file.parent.mkdir(exist_ok=True)
    latest = json.loads(file.read_text()) if file.exists() else {}
    latest = {"token": "", "idle": 0, "ended": True, "env_steps": 0, "log_bytes": 0} | latest
    file.write_text(json.dumps({**latest, "job": "77" if restarts else "none", "restarts": restarts - 1}))


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
        batch.begin(run.path, "1", "t", 2, None, [])
    assert run.read_state()["state"] == "failed" and "SLURM gives 2" in run.read_state()["reason"]
    with pytest.raises(BadRun, match="holds no run"):
        batch.begin(tmp_path / "none", "1", "t", 2, None, [])


def test_an_attempt_that_slurm_gave_up_touches_nothing(run: RunDir) -> None:
    """Its node was out of reach; the requeued job runs elsewhere by now."""
    batch.begin(run.path, "77", "77-0-old", RANKS, None, [])
    batch.begin(run.path, "77", "77-1-new", RANKS, None, [])
    run.write_state(state="running", reason="")
    growing = run.trajectories / "column" / "segment-1.h5.tmp"
    growing.parent.mkdir()
    growing.touch()
    assert batch.end(run.path, "77-0-old", 1, 9, "requeue", Ending("")) == "superseded"
    assert growing.exists() and run.read_state()["state"] == "running"


def test_attempts_that_are_lost_with_their_node_end_after_three(run: RunDir) -> None:
    """Nobody called `end`, so the next attempt counts."""
    for restarts in range(IDLE_RESTARTS):
        assert batch.begin(run.path, "77", f"77-{restarts}", RANKS, None, []) == str(restarts)
    assert run.read_state()["cause"] == "node lost" and "was lost" in run.read_state()["reason"]
    with pytest.raises(BadJob, match=r"3 attempts in a row.*then hpc-rl resume"):
        batch.begin(run.path, "77", "77-3", RANKS, None, [])
    assert run.read_state()["state"] == "failed"
    assert batch.begin(run.path, "78", "78-0", RANKS, None, []) == "0"  # somebody sent it again
    run.write_state(env_steps=50)
    batch.begin(run.path, "78", "78-1", RANKS, None, [])
    assert json.loads((run.path / "submit" / "attempt.json").read_text())["idle"] == 0


def test_a_stop_written_while_it_waited_holds(run: RunDir) -> None:
    run.request_stop()
    batch.begin(run.path, "77", "t", RANKS, None, [])
    assert run.stop_requested()


@pytest.mark.parametrize(
    ("output", "end"),
    [
        ("srun: error: n1: task 1: Out Of Memory\n", "ended: out of memory"),
        ("srun: error: n1: task 1: Bus error (core dumped)\n", "ended: bus error"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n1: task 1: Killed\n",
         "ended: killed by the node's memory limit"),
    ],
)  # fmt: skip
def test_srun_names_the_rank_and_its_end(run: RunDir, output: str, end: str) -> None:
    records: dict[int, dict[str, str]] = {0: {}, 1: {}, 2: {}}
    attempt(run, 0, 10, "running", "", said=output, code=137, asked=False, records=records)
    assert run.read_state()["reason"].startswith(f"rank 1 (actor-1) on n1 {end};")


def test_a_torn_record_of_a_rank_is_passed_over(run: RunDir) -> None:
    batch.begin(run.path, "77", "t", RANKS, None, [])
    (run.logs / "rank-000.json").write_text('{"pid": 1')
    assert batch.end(run.path, "t", 1, 9, "requeue", Ending("")) == "again"


def test_begin_makes_a_run_from_a_job_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "new")
    arguments = ["begin", folder, "--job", "5_1", "--ranks", "3", "--source", "impala_catch", "--set=seed=9"]
    assert batch.main(arguments) == 0 and batch.main(arguments) == 0
    job = jobs.load(Path(folder) / "job.toml")
    assert job.seed == 9 and job.resources.ranks == 3 and batch.job_ids(RunDir(Path(folder))) == ["5_1"]
    assert batch.main(["begin", folder, "--ranks", "9"]) == 2
    assert (output := capsys.readouterr()).out == "0\n1\n" and output.err.startswith("error: SLURM gives 9")


def test_jobs_are_listed_once_in_order(run: RunDir) -> None:
    for job in ("3", "4", "3", "5_0"):
        batch.note_job(run, job)
    assert batch.job_ids(run) == ["3", "4", "5_0"]


# ---- why it stopped -------------------------------------------------------------------------------------------------

RECORD = "JobId=77 JobName=x JobState={} Reason=None Requeue=1 Restarts=0 EndTime=2026-11-25T09:23:39 PreemptTime={} x"
RUNNING, ENDING = RECORD.format("RUNNING", "None"), RECORD.format("COMPLETING", "None")
PREEMPTED = RECORD.format("RUNNING", "2026-11-25T09:23:24")
STEP = "slurmstepd-n1: error: *** STEP 77.0 ON n1 CANCELLED AT 2026-11-25T09:23:24{} ***\n"


@pytest.mark.parametrize(
    ("cause", "reason", "word", "traces"),
    [
        ("time limit", "job 77 reached its time limit", "again", {"record": RUNNING}),
        ("time limit", "job 77 reached its time limit", "again", {"asked": False, "why": OUT_OF_TIME}),
        ("time limit", "job 77 reached its time limit", "again", {"account": "TIMEOUT", "record": ENDING}),
        ("preempted", "job 77 was preempted", "again", {"record": PREEMPTED, "left": 5000.0}),
        ("preempted", "job 77 was preempted", "again", {"asked": False, "said": STEP.format(" DUE TO PREEMPTION")}),
        ("preempted", "job 77 was preempted", "again", {"record": ENDING, "account": "PREEMPTED", "left": 5000.0}),
        ("signal", "job 77 got SIGUSR1", "again", {"record": RUNNING, "left": 5000.0}),
        ("signal", "job 77 got a signal", "again", {"asked": False, "record": RUNNING}),
        ("cancelled", f"job 77 was cancelled by {user(os.getuid())}", "stopped",
         {"record": ENDING, "account": f"CANCELLED by {os.getuid()}", "left": 5000.0, "said": STEP.format("")}),
        ("cancelled", "job 77 was cancelled", "stopped", {"record": ENDING, "left": 5000.0}),
        ("node lost", "a node of job 77 was lost", "again", {"said": STEP.format(" DUE TO NODE FAILURE, SEE")}),
        ("actors lost", "too few actors are left: none sends to learner-0 any more", "again",
         {"asked": False, "why": f"{TOO_FEW}: none sends to learner-0 any more"}),
    ],
)  # fmt: skip
def test_one_cause_per_stop(run: RunDir, cause: str, reason: str, word: str, traces: dict[str, Any]) -> None:
    """All ranks saved, and said no more than that they had been asked to; the cause is found by whoever sees it."""
    assert attempt(run, 0, 100, "stopped", traces.get("why", "stopped: asked to stop"), **traces) == word
    state = run.read_state()
    waiting = "; restart 1 is waiting" if word == "again" else ""
    assert (state["cause"], state["reason"]) == (cause, f"stopped: {reason}{waiting}")
    assert state["state"] == ("pending" if word == "again" else "stopped")
    assert state["next"] == ("" if word == "again" else f"hpc-rl resume {run.path}")


@pytest.mark.parametrize(
    ("cause", "reason", "word", "traces"),
    [
        ("cancelled", "job 77 was cancelled before the ranks had saved; the last checkpoint stands", "stopped",
         {"record": ENDING, "left": 5000.0, "said": "srun: error: n1: task 1: Killed\n"}),
        ("time limit", "job 77 reached its time limit before the ranks had saved", "again",
         {"record": RUNNING, "said": "srun: error: n1: task 1: Killed\n"}),
        ("out of memory", "rank 1 (actor-1) on n1 ended: out of memory", "again",
         {"record": RECORD.format("OUT_OF_MEMORY", "None"), "said": "srun: error: n1: task 1: Out Of Memory\n",
          "asked": False}),
        ("killed", "rank 1 (actor-1) on n1 ended: killed", "again",
         {"said": "srun: error: n1: task 1: Killed\n", "asked": False}),
        ("error", "rank 1 (actor-1) on n1 failed: disk full", "again",
         {"records": {1: {"ended": "error", "time": 1.0, "error": "disk full", "bug": False}}}),
    ],
)  # fmt: skip
def test_one_cause_per_failure(run: RunDir, cause: str, reason: str, word: str, traces: dict[str, Any]) -> None:
    records: dict[int, dict[str, str]] = {0: {}, 1: {}, 2: {}}
    assert attempt(run, 0, 100, "running", "", **{"code": 137, "records": records, **traces}) == word
    state = run.read_state()
    assert state["cause"] == cause and state["reason"].startswith(reason)


def test_the_next_command_can_be_pasted_and_asks_for_more_memory_where_that_was_missing(tmp_path: Path) -> None:
    run = create(tmp_path / "a 'run' $(x)", jobs.dumps(jobs.load("impala_catch", [f"resources.ranks={RANKS}"])))
    dead = {"said": "srun: error: n1: task 1: Out Of Memory\n", "code": 137, "asked": False, "mode": "none"}
    dead |= {"record": "JobId=77 JobState=OUT_OF_MEMORY MinMemoryNode=1500M x", "records": {0: {}, 1: {}, 2: {}}}
    assert attempt(run, 0, 100, "running", "", **dead) == "failed"
    assert shlex.split(run.read_state()["next"]) == ["hpc-rl", "resume", str(run.path), "--mem", "3000M"]


def test_a_stop_file_says_who_wrote_it(run: RunDir) -> None:
    assert attempt(run, 0, 100, "stopped", stop_file=True) == "stopped"
    assert (run.read_state()["cause"], run.read_state()["reason"]) == (
        "STOP file", f"stopped: {run.path}/STOP was written"
    )  # fmt: skip
    run.clear_stop()
    run.request_stop("cancelled by ann with hpc-rl cancel")
    assert attempt(run, 1, 200, "stopped") == "stopped"
    assert (run.read_state()["cause"], run.read_state()["reason"]) == (
        "cancelled", "stopped: cancelled by ann with hpc-rl cancel"
    )  # fmt: skip


def test_a_run_that_is_done_is_done_whatever_its_launcher_ends_with(run: RunDir) -> None:
    assert attempt(run, 1, 100, "done", "done: budget", code=143, asked=False) == "done"
    assert run.read_state()["state"] == "done" and run.read_state()["reason"] == "done: budget"
    assert batch.begin(run.path, "77", "t", RANKS, None, []) == "done"  # the controller had lost its node, and requeues


def test_what_was_done_before_a_resume_does_not_hide_a_failure(run: RunDir) -> None:
    run.write_state(state="done", reason="done: budget", env_steps=5)
    batch.begin(run.path, "78", "t", RANKS, None, [])  # with a larger budget
    assert batch.end(run.path, "t", 1, 9, "none", Ending("")) == "failed"


def test_the_count_of_restarts_passes_to_a_successor_by_the_run_directory(run: RunDir) -> None:
    """A chain that fails at once ends, whatever of the environment reaches its jobs."""
    words = []
    for job in ("12", "13", "14"):
        count = batch.begin(run.path, job, f"{job}-x", RANKS, None, [])
        batch.note_successor(run, f"{job}-x", str(int(job) + 1))
        words.append((count, batch.end(run.path, f"{job}-x", 1, 100, "chain", Ending(""))))
    assert words == [("0", "again"), ("1", "failed"), ("2", "failed")]
    assert batch.begin(run.path, "99", "99-x", RANKS, None, []) == "0"  # somebody sent it again


def test_a_job_that_slurm_takes_no_more_is_stopped_and_says_how_to_go_on(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempt(run, 0, 100, "stopped") == "again"
    batch.stuck(run, "77-0")
    state = run.read_state()
    assert (state["state"], state["cause"], state["next"]) == ("stopped", "time limit", f"hpc-rl resume {run.path}")
    assert "restart" not in state["reason"] and "SLURM neither requeued the job nor took a new one" in state["reason"]
    assert f"go on with: hpc-rl resume {run.path}" in capsys.readouterr().err
